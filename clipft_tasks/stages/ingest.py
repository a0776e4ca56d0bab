"""ingest: a source becomes staged shards and a manifest; rows that cannot be taken are listed with their reason."""

import shutil

from ..contracts.stages import IngestResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import ingest_pipeline
from ..data.account import tell
from ..data.readers import open_source
from ..domains import get_domain
from ..spec import RunSpec


def run(spec: RunSpec) -> IngestResult:
    """Read the source into a staging folder.

    Raises: ClipftError when the source cannot be opened or holds nothing usable, or the folder cannot be written.
    """
    source = open_source(spec.source, spec.data)
    domain = get_domain(spec.domain)
    if source.license:
        say(f"License of {source.name}: {source.license}")
    earlier = ingest_pipeline.Earlier.of(domain.name)

    staging = settings().folder("staging") / spec.identity("ingest", "domain", "source", "data")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        card, rejected = ingest_pipeline.stage(spec.source, source, spec.data, domain, earlier, staging)
    except OSError as error:  # reading a row's image is caught there; this is the writing
        raise ClipftError(
            f"staging folder {staging}",
            f"it cannot be written: {error.strerror}",
            "Make space, then run again.",
            code="dataset.not_writable",
        ) from error
    if not card.rows:
        reasons = "; ".join(f"{r.where}: {r.reason}" for r in rejected[:3])
        raise ClipftError(
            f"source {spec.source}",
            f"not one row could be taken ({reasons})",
            "Correct the rows named.",
            code="source.no_usable_rows",
        )

    say(f"Took {card.rows} rows ({', '.join(f'{s} {n}' for s, n in card.counts.items())}), rejected {len(rejected)}.")
    for row in rejected[:10]:
        say(f"  rejected {row.where}: {row.reason}")
    if len(rejected) > 10:
        say(f"  … and {len(rejected) - 10} more, all in {staging / 'rejected.jsonl'}")
    tell(card.account)
    return IngestResult(
        staging=str(staging),
        rows=card.rows,
        rejected=card.rejected,
        counts=card.counts,
        content=card.content,
        license=card.license,
    )

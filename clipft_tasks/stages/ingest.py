"""ingest: a source becomes staged shards and a manifest; rows that cannot be taken are listed with their reason."""

from collections.abc import Sequence

from ..contracts.dataset import DatasetCard
from ..contracts.stages import IngestPartResult, IngestResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import own_folder
from ..core.settings import settings
from ..data import ingest_pipeline, packing, splits, staged, versioning
from ..data.account import tell
from ..data.readers import open_source
from ..domains import get_domain
from ..spec import RunSpec


def part(spec: RunSpec, part: int, of: int) -> IngestPartResult:
    """Decode the images of one part of the source, on any machine: `run` then decodes none of them.

    Args:
        part: from 0, of how many.
    Raises: as `run`.
    """
    found = packing.describe_part(open_source(spec.source, spec.data), get_domain(spec.domain).gray_bits, part, of)
    say(f"Decoded {len(found)} images, part {part + 1} of {of}.")
    return IngestPartResult(described=staged.publish_described(found), images=len(found))


def run(spec: RunSpec, resplit: bool = False, parts: Sequence[IngestPartResult] = ()) -> IngestResult:
    """Read the source into a staging folder.

    Args:
        parts: what other tasks found out about its images.
        resplit: forget which row was in which split: the version that comes of it begins a new major. Without a source, of the
            rows of the newest version.
    Raises: ClipftError when the source cannot be opened or holds nothing usable, or the folder cannot be written.
    """
    domain = get_domain(spec.domain)
    name, source = spec.source, None
    if resplit and not name:
        newest = versioning.find("", domain.name)
        name, source = newest.card.source, ingest_pipeline.rows_of(newest)
    source = source or open_source(name, spec.data)
    if source.license:
        say(f"License of {source.name}: {source.license}")
    earlier = ingest_pipeline.Earlier.of(domain.name)
    if resplit:
        earlier = earlier.forgotten()

    known = staged.described(done.described for done in parts) if parts else {}
    run_of = spec.identity("ingest", "domain", "source", "data")
    try:
        # Each run has a folder of its own: two of the same form at once do not meet, whoever started them.
        with own_folder(settings().folder("staging")) as building:
            card, rejected = ingest_pipeline.stage(name, source, spec.data, domain, earlier, building, known)
            staging = ingest_pipeline.settle(building, run_of)
    except OSError as error:  # reading a row's image is caught there; this is the writing
        raise ClipftError(
            f"staging folder {settings().root / 'staging'}",
            f"it cannot be written: {error.strerror}",
            "Make space, then run again.",
            code="dataset.not_writable",
        ) from error
    if not card.rows:
        tell(card.account)
        reasons = "; ".join(f"{r.where}: {r.reason}" for r in rejected[:3]) or "it holds none"
        raise ClipftError(
            f"source {spec.source}",
            f"not one row could be taken ({reasons})",
            "Correct the rows named.",
            code="source.no_usable_rows",
        )

    say(f"Took {card.rows} rows ({', '.join(f'{s} {n}' for s, n in card.counts.items())}), rejected {len(rejected)}.")
    _say_splits(card)
    for row in rejected[:10]:
        say(f"  rejected {row.where}: {row.reason}")
    if len(rejected) > 10:
        say(f"  … and {len(rejected) - 10} more, all in {staging / 'rejected.jsonl'}")
    tell(card.account)
    return IngestResult(
        staging=staged.publish(staging),
        rows=card.rows,
        rejected=card.rejected,
        counts=card.counts,
        content=card.content,
        license=card.license,
    )


def _say_splits(card: DatasetCard) -> None:
    """What a person would not expect of the splits."""
    anew = f"`clipft resplit {card.domain}` splits the domain anew."
    if card.kept_splits:
        say(f"  {card.kept_splits} rows keep the split of earlier versions, though the source names another. {anew}")
    if card.parted:
        say(f"  {card.parted} rows left out: with what they resemble or share a group with, they stand on two sides. {anew}")
    for split in splits.SPLITS:
        without = [label for label, missing in card.absent.items() if split in missing]
        if without:
            more = f" and {len(without) - 5} more" if len(without) > 5 else ""
            say(f"  No row in {split} of {', '.join(without[:5])}{more}: too few groups, or splits that are fixed.")

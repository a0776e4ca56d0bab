"""validate: the staged rows meet the domain's expectations, or nothing goes on."""

from ..contracts.stages import ValidateResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import expectations, ingest_pipeline, manifest, report, staged
from ..domains import get_domain
from ..model import token_counting
from ..spec import RunSpec


def run(spec: RunSpec, staging: str) -> ValidateResult:
    """Check a staging folder and write its report.

    Raises: ClipftError naming the failed checks, their rows and the report.
    """
    folder = staged.fetch(staging, lambda name: not name.startswith("shards/"))
    domain = get_domain(spec.domain)
    frame = manifest.read(folder / "manifest.parquet")
    card, rejected = ingest_pipeline.read_card(folder), ingest_pipeline.read_rejected(folder)

    captions = frame["caption"].unique().tolist()
    found, context = token_counting.count_apart(spec.model.start, spec.domain, captions)
    counts = dict(zip(captions, found, strict=True))

    from .. import tracking  # after the other process has ended

    described = expectations.describe(frame, domain, frame["caption"].map(counts), context)
    checks = expectations.check(described, domain, context, len(rejected) / (len(rejected) + len(frame)), spec.data)
    failed = [c for c in checks if not c.passed]

    left_out = ingest_pipeline.left_out(folder, frame)
    shown = {f"shards/{shard}" for shard in report.shards_shown(described, left_out)}
    staged.fetch(staging, lambda name: name in shown)
    path = folder / "report.html"
    packed_before = [settings().folder("cache", "shards"), settings().working_copy / spec.domain / "shards"]
    report.write(path, described, card, checks, rejected, [folder / "shards", *packed_before], left_out)
    numbers = {"rows": card.rows, "rejected": card.rejected, "checks_failed": len(failed)}
    tags = {"clipft.source": card.source}
    link = tracking.log_page(f"clipft-{spec.domain}-data", card.content, f"data {card.source}", tags, numbers, path)
    for c in checks:
        say(f"  {'pass' if c.passed else 'FAIL'}  {c.title}: {c.observed} (limit: {c.limit})")
    say(f"Report: {path}")
    if failed:
        what = "; ".join(f"{c.title}: {c.observed}" + (f", e.g. {', '.join(c.rows[:5])}" if c.rows else "") for c in failed)
        raise ClipftError(
            f"the data set from {spec.source}",
            f"{len(failed)} of {len(checks)} checks failed: {what}",
            f"Report: {link} ({path})." + (f" `clipft resplit {spec.domain}` splits the domain anew." if card.parted else ""),
            code="dataset.checks_failed",
        )
    return ValidateResult(passed=len(checks), rows=len(frame), report=str(path), links={"Data report": link})

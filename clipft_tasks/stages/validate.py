"""validate: the staged rows meet the domain's expectations, or nothing goes on."""

import json
from pathlib import Path
from typing import Any

from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import expectations, manifest, report, versioning
from ..domains import get_domain
from ..spec import RunSpec


def run(spec: RunSpec, staging: str) -> dict[str, Any]:
    """Check a staging folder and write its report.

    Returns: checks passed, rows, the report's path and (when MLflow is there) its address.
    Raises: ClipftError naming the failed checks, their rows and the report.
    """
    from .. import tracking
    from ..model import build
    from ..model.clip import token_counts

    folder = Path(staging)
    domain = get_domain(spec.domain)
    frame = manifest.read(folder / "manifest.parquet")
    card = json.loads((folder / "datacard.json").read_text())
    rejected = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]

    tokenizer, context = build.tokenizer(spec.model.start, domain=spec.domain)
    captions = frame["caption"].unique().tolist()
    counts = dict(zip(captions, token_counts(tokenizer, captions), strict=True))
    described = expectations.describe(frame, domain, frame["caption"].map(counts), context)
    checks = expectations.check(described, domain, context, len(rejected) / (len(rejected) + len(frame)))

    path = folder / "report.html"
    report.write(
        path,
        described,
        card,
        checks,
        rejected,
        [folder / "shards", settings().folder("cache", "shards"), versioning.working_copy() / spec.domain / "shards"],
    )
    link = tracking.log_page(
        f"clipft-{spec.domain}-data",
        card["content"],
        f"data {card['source']}",
        {"clipft.source": card["source"]},
        {"rows": card["rows"], "rejected": card["rejected"], "checks_failed": sum(not c.passed for c in checks)},
        path,
    )
    for c in checks:
        say(f"  {'pass' if c.passed else 'FAIL'}  {c.title}: {c.observed} (limit: {c.limit})")
    say(f"Report: {path}")
    failed = [c for c in checks if not c.passed]
    if failed:
        what = "; ".join(f"{c.title}: {c.observed}" + (f", e.g. {', '.join(c.rows[:5])}" if c.rows else "") for c in failed)
        raise ClipftError(
            f"the data set from {spec.source}",
            f"{len(failed)} of {len(checks)} checks failed: {what}",
            f"Report: {link} ({path}).",
        )
    return {"passed": len(checks), "rows": len(frame), "report": str(path), "links": {"Data report": link}}

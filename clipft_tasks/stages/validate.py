"""validate: the staged rows meet the domain's expectations, or nothing goes on."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..contracts.dataset import RowsChecked
from ..contracts.stages import ValidatePartResult, ValidateResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data import expectations, gallery, ingest_pipeline, manifest, report, shards, staged, versioning
from ..domains import get_domain
from ..model import outliers, token_counting
from ..spec import RunSpec


def part(spec: RunSpec, staging: str, part: int, of: int) -> ValidatePartResult:
    """Find out what takes long of one part of the rows, on any machine: `run` then finds out none of it.

    Args:
        part: from 0, of how many.
    """
    folder = staged.fetch(staging, lambda name: name == "manifest.parquet")
    found = _look(spec, manifest.read(folder / "manifest.parquet"), part, of)
    say(f"Looked at {len(found.tokens)} of {found.rows} rows, part {part + 1} of {of}.")
    return ValidatePartResult(found=staged.publish_checked(found), part=part, of=of)


def _look(spec: RunSpec, frame: pd.DataFrame, part: int = 0, of: int = 1) -> RowsChecked:
    captions = frame["caption"].iloc[part::of]
    different = captions.unique().tolist()
    counted, context = token_counting.count_apart(spec.model.start, spec.domain, different)
    tokens = captions.map(dict(zip(different, counted, strict=True))).astype(int).tolist()
    found = expectations.look(frame, get_domain(spec.domain), spec.data, part, of)
    return found.model_copy(update={"tokens": tokens, "context": context})


def _far(spec: RunSpec, staging: str, folder: Path, frame: pd.DataFrame) -> pd.Series:
    """How far images are from those most like them, by the start model, of as many as the spec says."""
    chosen = gallery.embeddable(frame, spec.data.outliers)
    needed = set(chosen["shard"])
    staged.fetch(staging, lambda name: name.removeprefix("shards/") in needed)
    here = {name: folder / "shards" for name in needed if (folder / "shards" / name).is_file()}
    if away := needed - here.keys():
        here |= dict.fromkeys(away, versioning.fetch_shards(versioning.find("", spec.domain), away))
    places = [(here[r.shard], shards.Place(r.shard, int(r.offset), int(r.length))) for r in chosen.itertuples()]
    return pd.Series(outliers.distances_apart(spec.model.start, spec.domain, places), index=chosen.index)


def run(spec: RunSpec, staging: str, parts: Sequence[ValidatePartResult] = ()) -> ValidateResult:
    """Check a staging folder and write its report.

    Args:
        parts: what other tasks found out of its rows. A part that is missing costs time, and nothing else.
    Raises: ClipftError naming the failed checks, their rows and the report.
    """
    folder = staged.fetch(staging, lambda name: not name.startswith("shards/"))
    domain = get_domain(spec.domain)
    frame = manifest.read(folder / "manifest.parquet")
    card, rejected = ingest_pipeline.read_card(folder), ingest_pipeline.read_rejected(folder)

    of = parts[0].of if parts else 1
    handed = {done.part: staged.checked(done.found, done.part, of, len(frame)) for done in parts if done.of == of}
    looked = [handed.get(number) or _look(spec, frame, number, of) for number in range(of)]

    from .. import tracking  # after the process that counts tokens has ended

    described, context = expectations.describe(frame, looked)
    checks = expectations.check(described, domain, context, len(rejected) / (len(rejected) + len(frame)), spec.data)
    failed = [c for c in checks if not c.passed]

    left_out = ingest_pipeline.left_out(folder, frame)
    shown = {f"shards/{shard}" for shard in report.shards_shown(described, left_out)}
    staged.fetch(staging, lambda name: name in shown)
    far = _far(spec, staging, folder, described) if spec.data.outliers else None
    path = folder / "report.html"
    packed_before = [settings().folder("cache", "shards"), settings().working_copy / spec.domain / "shards"]
    report.write(path, described, card, checks, rejected, [folder / "shards", *packed_before], left_out, far)
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
    if suspects := expectations.label_suspects(described):
        say(f"{suspects} images look like one of another class. `clipft review` ranks labels, once there is a version.")
    return ValidateResult(passed=len(checks), rows=len(frame), report=str(path), suspects=suspects, links={"Data report": link})

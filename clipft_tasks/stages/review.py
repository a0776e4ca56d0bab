"""review: which labels look wrong, on a page where people decide; and a dataset version made of what they decided."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..contracts.review import DecisionsFile
from ..contracts.stages import ReviewResult, VersionResult
from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import own_folder
from ..core.settings import settings
from ..data import ingest_pipeline, repository, staged, versioning
from ..domains import get_domain
from ..spec import RunSpec


def run(spec: RunSpec, most: int = 200) -> ReviewResult:
    """Rank the rows of a dataset version by how wrong their labels look, and write the page.

    Args:
        spec: `dataset` (the newest where it is empty) and `model.start`, whose embeddings are compared.
        most: rows on the page.
    Raises: ClipftError where there is nothing to compare: fewer than two classes, or fewer than two groups of one.
    """
    from .. import tracking
    from ..evaluate import review, review_page
    from ..model import build
    from ..model.layout import prepare_for_inference
    from ..train import start_defaults

    version = versioning.find(spec.dataset, spec.domain)
    dataset = versioning.fetch(version)
    clip = build.load(spec.model.start, domain=version.domain)
    side = start_defaults.settle(spec, clip).resolution.side
    prepare_for_inference(clip, spec.memory.device)
    found = review.doubtful(dataset, clip, side, spec.evaluate.batch)
    path = settings().folder("reviews") / f"{version.domain}-v{version.number}.html"
    shown = review_page.write(path, dataset, found, most)
    numbers = {"rows": len(found.rows.frame), "wrong": found.wrong, "shown": shown}
    tags = {"clipft.dataset": version.tag}
    link = tracking.log_page(
        f"clipft-{version.domain}-data", f"{version.card.content}-review", f"review {version.tag}", tags, numbers, path
    )
    say(f"{found.sentence} The page shows {shown:,} of {len(found.rows.frame):,} rows, the most doubtful first.")
    say(f"Review: {path}")
    return ReviewResult(
        dataset=version.tag,
        rows=len(found.rows.frame),
        wrong=found.wrong,
        shown=shown,
        page=str(path),
        links={"Label review": link},
    )


def apply(spec: RunSpec, files: Sequence[DecisionsFile], *, skip_conflicts: bool = False) -> VersionResult:
    """Make a version of what people decided on earlier versions of a domain: on the newest, whatever came in between.

    Args:
        spec: its domain, and the limits of its checks.
        skip_conflicts: where two people contradict each other, the earlier decision stands.
    Raises: ClipftError where they contradict each other, a decided row is not in the version that its file names, or the checks
        fail on what is left.
    """
    from . import validate

    domain, before = get_domain(spec.domain), repository.remote_bytes()
    for file in files:
        if versioning.find(file.version, "").domain != domain.name:
            why = f"they are on {file.version}, which is no version of {domain.name}"
            raise ClipftError("the decisions", why, "Give the files of one domain.", code="review.other_domain")
    while True:
        earlier = ingest_pipeline.Earlier.of(domain.name).reviewed(files, domain.caption, skip=skip_conflicts)
        with own_folder(settings().folder("staging")) as building:
            newest = earlier.newest or versioning.find("", domain.name)
            rows = ingest_pipeline.rows_of(newest)
            card, _ = ingest_pipeline.stage(rows.name, rows, spec.data, domain, earlier, building)
            staging = ingest_pipeline.settle(building, spec.identity("review", "domain"))
        if not card.rows:
            raise ClipftError(f"decisions on {domain.name}", "they leave no row", "Drop fewer.", code="review.nothing_left")
        validate.run(spec, staged.publish(staging))
        try:
            version, new = versioning.commit(domain.name, staging, card)
            break
        except versioning.ParentMovedError as moved:  # the decisions are merged with whatever came with that version
            say(f"Applying the decisions again ({moved}).")
    for sentence in version.card.account.understood:
        say(sentence)
    say(f"Version {version.tag}." if new else f"The same decisions are already in {version.tag}.")
    return VersionResult(
        dataset=version.tag,
        domain=domain.name,
        revision=version.revision,
        new=new,
        rows=version.card.rows,
        counts=version.card.counts,
        pushed_bytes=repository.remote_bytes() - before,
    )


def read_decisions(path: Path) -> DecisionsFile:
    """The file that a review page wrote. Raises ClipftError where it is none."""
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ClipftError(
            f"decisions file {path}",
            f"it cannot be read ({error})",
            "Export it from the page again.",
            code="review.unreadable_file",
        ) from error
    return DecisionsFile.from_json(found, str(path))

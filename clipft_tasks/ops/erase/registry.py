"""What MLflow keeps of erased rows: pages and tables of runs, packages of models; and which models saw the rows."""

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ... import tracking
from ...contracts.erasure import PlaceSearched, SeenIn
from ...contracts.recorded_answers import RecordedAnswers
from ...core.console import progress
from ...core.errors import ClipftError
from ...core.settings import settings
from ...data import images
from ...drift.reference import FACTS, TENSORS, ImageRows, Reference
from ...model import package
from . import traces as tracing
from .traces import Traces

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

PASSED_BY = ("checkpoints", "artifacts/package")  # folders of runs that hold no page and no table
SAME = 6  # bits in which a recorded image may differ from the erased one's square


@dataclass(frozen=True)
class Kept:
    """A model's package as MLflow stores it.

    Attributes:
        name: of the version, or of the run that logged it. store: of its files. folder: of the package in there.
        versions: names and numbers of the versions that are registered of it.
    """

    name: str
    store: "ArtifactRepository"
    folder: str
    versions: tuple[tuple[str, str], ...] = ()


def is_there() -> bool:
    """Whether there is anything to look at: a look must not make a database."""
    uri = settings().tracking_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def running(rows: Mapping[str, object]) -> list[str]:
    """Runs that say that they are at work on one of these dataset versions."""
    return [
        f"run {run.info.run_id} ({run.info.run_name}) works on {run.data.tags['clipft.dataset']}"
        for run in _runs("attributes.status = 'RUNNING'")
        if run.data.tags.get("clipft.dataset") in rows
    ]


def seen_in(rows: Mapping[str, Mapping[str, int]]) -> list[SeenIn]:
    """The models that saw erased rows.

    Args:
        rows: by dataset version, how many of its rows are erased, by split.
    """
    client, found = tracking.client(), []
    started: dict[str, list[tuple[str, list[str], str]]] = {}
    for version in _versions():
        name, dataset = f"{version.name}/{version.version}", version.tags.get("clipft.dataset", "")
        aliases = [str(alias) for alias in client.get_model_version(version.name, version.version).aliases]
        if dataset in rows:
            found.append(SeenIn(model=name, aliases=aliases, dataset=dataset, rows=dict(rows[dataset])))
        else:
            start = client.get_run(version.run_id).data.tags.get("clipft.start", "") if version.run_id else ""
            started.setdefault(start.removeprefix("models:/"), []).append((name, aliases, dataset))
    waiting = [seen.model for seen in found if seen.rows.get("train") or seen.start]
    while waiting:
        for name, aliases, dataset in started.pop(start := waiting.pop(), []):
            found.append(SeenIn(model=name, aliases=aliases, dataset=dataset, start=start))
            waiting.append(name)
    return found


def redact(domains: set[str], traces: Traces) -> PlaceSearched:
    """Take the rows out of the pages, records and tables of all runs of some domains. Safe to repeat."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    looked = held = 0
    runs = _runs()
    for run in progress(runs, "runs of MLflow", len(runs)) if runs else []:
        if not any(_is_of(run, domain) for domain in domains):
            continue
        store = get_artifact_repository(run.info.artifact_uri)
        for path in _files(store):
            looked += 1
            with tempfile.TemporaryDirectory() as folder:
                local = Path(store.download_artifacts(path, dst_path=folder))
                if (content := tracing.without(local, traces)) is not None:
                    local.write_bytes(content)
                    store.log_artifact(str(local), str(Path(path).parent) if "/" in path else None)
                    held += 1
    return PlaceSearched(place="runs of MLflow", looked_at=looked, held=held, note=_versioned())


def packages(rows: Mapping[str, object]) -> list[Kept]:
    """The packages of all models, registered or not, that were made of some dataset versions."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    registered: dict[str, list[tuple[str, str]]] = {}
    for version in _versions():
        if version.run_id:
            registered.setdefault(version.run_id, []).append((version.name, str(version.version)))
    out = []
    for run in _runs():
        uri = run.data.tags.get("clipft.model_uri", "")
        if not uri or run.data.tags.get("clipft.dataset") not in rows:
            continue
        model = tracking.client().get_logged_model(uri.removeprefix("models:/")) if uri.startswith("models:/m-") else None
        where = model.artifact_location if model else f"{run.info.artifact_uri}/{uri.rpartition('/')[2]}"
        versions = tuple(registered.get(run.info.run_id, ()))
        name = ", ".join(f"{name}/{number}" for name, number in versions) or f"run {run.info.run_id}"
        out.append(Kept(name, get_artifact_repository(where), "artifacts/package", versions))
    return out


def repack(kept: Kept, traces: Traces, *, dry: bool) -> str:
    """Take the rows out of a package: recorded answers, and the reference that drift is measured against. Safe to repeat.

    Args:
        dry: only look.
    Returns: what it held of them, and what became of that; "" for nothing.
    """
    names = (package.RECORDED_ANSWERS, TENSORS, FACTS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        there = {f.path.rpartition("/")[2] for f in kept.store.list_artifacts(kept.folder) or []}
        for name in names:
            if name in there:
                kept.store.download_artifacts(f"{kept.folder}/{name}", dst_path=str(folder))
        local = folder / kept.folder
        held, changed = [], []
        if package.RECORDED_ANSWERS in there and (count := _recorded(local, traces)):
            held.append(f"{count} of its recorded answers")
            changed.append(package.RECORDED_ANSWERS)
        if {TENSORS, FACTS} <= there and (count := _reference(local, traces)):
            held.append(f"{count} rows of its reference")
            changed += [TENSORS, FACTS]
        if not held:
            return ""
        if dry:
            return f"{' and '.join(held)} are erased rows"
        for name in changed:
            kept.store.log_artifact(str(local / name), kept.folder)
        _sign(kept, {name: package.weights_digest(local / name) for name in changed})
        return f"{' and '.join(held)} were erased rows; it was packed again without them"


def _recorded(folder: Path, traces: Traces) -> int:
    """Write recorded answers without erased rows; returns how many images and texts were such."""
    recorded = package.read_recorded_answers(folder)
    looks = [
        int.from_bytes(images.perceptual_hash(images.open_image(base64.b64decode(image), gray_bits=8).rgb))
        for image in recorded.images
    ]
    own = [int(look, 16) for look in traces.looks]
    gone = [any((look ^ other).bit_count() <= SAME for other in own) for look in looks]
    captions = set(traces.captions)
    said = [text in captions for text in recorded.texts]
    if not any(gone) and not any(said):
        return 0
    kept_images, kept_texts = [i for i, g in enumerate(gone) if not g], [j for j, s in enumerate(said) if not s]
    if not kept_images or not kept_texts:  # what is left would verify nothing
        why = "all of its recorded answers are erased rows, and a package without any is not served"
        raise ClipftError(
            f"the package in {folder}", why, "Delete the model, or fine-tune it again.", code="erase.no_answers_left"
        )
    answers = RecordedAnswers(
        images=[recorded.images[i] for i in kept_images],
        texts=[recorded.texts[j] for j in kept_texts],
        similarity=[[recorded.similarity[i][j] for j in kept_texts] for i in kept_images],
        side=recorded.side,
        tolerance=recorded.tolerance,
    )
    content = json.dumps(answers.to_json(), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / package.RECORDED_ANSWERS).write_text(content)
    return sum(gone) + sum(said)


def _reference(folder: Path, traces: Traces) -> int:
    """Write a reference without erased rows; returns how many were such. Its limits stay: they say nothing of one row."""
    reference = Reference.load(folder)
    erased = set(traces.images)
    kept = np.array([image not in erased for image in reference.facts.images], dtype=bool)
    if kept.all() or len(kept) != len(reference.rows):
        return 0
    rows = reference.rows.take(np.flatnonzero(kept))
    paired = reference.paired[kept] if len(reference.paired) == len(kept) else reference.paired
    left = [image for image in reference.facts.images if image not in erased]
    facts = reference.facts.model_copy(update={"images": left})
    Reference(ImageRows(rows.image, rows.appearance, rows.similarity), reference.text, facts, paired).save(folder)
    return int((~kept).sum())


def _sign(kept: Kept, new: Mapping[str, str]) -> None:
    """Note the digests of the changed files with each version that is registered of a package."""
    client = tracking.client()
    for name, number in kept.versions:
        if known := client.get_model_version(name, number).tags.get(tracking.DIGESTS):
            client.set_model_version_tag(name, number, tracking.DIGESTS, json.dumps(json.loads(known) | new))
            client.set_model_version_tag(name, number, tracking.REPACKED, "true")


def _is_of(run: "Run", domain: str) -> bool:
    name = _experiment(run.info.experiment_id)
    return name == f"clipft-{domain}" or name.startswith(f"clipft-{domain}-")


def _experiment(id: str) -> str:
    return str(tracking.client().get_experiment(id).name)


def _runs(what: str = "") -> "list[Run]":
    from mlflow.entities import ViewType

    client = tracking.client()
    with tracking.retryable():
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ALL) if e.name.startswith("clipft-")]
        found: list[Run] = []
        token: str | None = None
        while experiments:
            page = client.search_runs(experiments, what, run_view_type=ViewType.ALL, page_token=token)
            found += page
            if not (token := page.token):
                break
        return found


def _versions() -> Iterator["ModelVersion"]:
    token: str | None = None
    while True:
        page = tracking.client().search_model_versions(page_token=token)
        yield from page
        if not (token := page.token):
            return


def _files(store: "ArtifactRepository", below: str | None = None) -> Iterator[str]:
    for file in store.list_artifacts(below) or []:
        if file.path.startswith(PASSED_BY):
            continue
        if file.is_dir:
            yield from _files(store, file.path)
        elif file.path.endswith((*tracing.TEXTS, ".parquet")):
            yield file.path


def _versioned() -> str:
    away = settings().mlflow_uri and not settings().tracking_uri.startswith("sqlite:")
    return "an object store that keeps versions keeps the old files: delete them there" if away else ""

"""MLflow's garbage: runs that are no version's, with their models and artifacts."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...core.errors import ClipftError
from ...core.settings import settings
from ..installation import folder_size
from .report import DAY, Item, Report

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.entities import PagedList

T = TypeVar("T")
NAMED = re.compile(r"(?<![0-9a-zA-Z])(m-)?[0-9a-f]{32}(?![0-9a-zA-Z])")  # a run, or a logged model


@dataclass(frozen=True)
class Runs:
    """Runs that go after `days`, or `deleted` days after somebody deleted them in MLflow."""

    days: float
    deleted: float
    title: str = "runs of MLflow"

    def find(self) -> Report:
        if (
            settings().tracking_uri.startswith("sqlite:")
            and not Path(settings().tracking_uri.removeprefix("sqlite:///")).exists()
        ):
            return Report()
        from mlflow.entities import ViewType

        from ... import tracking

        client = tracking.client()
        with tracking.retryable():
            experiments = [e.experiment_id for e in client.search_experiments(ViewType.ALL)]
            runs = list(_pages(lambda token: client.search_runs(experiments, run_view_type=ViewType.ALL, page_token=token)))
            versions = list(_pages(lambda token: client.search_model_versions(page_token=token)))
        held = _held(runs, versions)
        return Report.of(found for run in runs if run.info.run_id not in held and (found := self._judged(run)))

    def _judged(self, run: "Run") -> Item | str | None:
        """What becomes of a run that is no version's."""
        info = run.info
        age = (time.time() - (info.end_time or info.start_time) / 1000) / DAY
        name = f"run {info.run_id} ({info.run_name})"
        if info.lifecycle_stage == "deleted":
            return Item("runs", name, "deleted in MLflow", _bytes(run), _purge(run)) if age > self.deleted else None
        if age <= self.days or not _candidate(run):
            return None
        if info.status in ("RUNNING", "SCHEDULED"):
            return f"{name} says that it is running, since {age:.0f} days; if it is lost, delete it in MLflow"
        why = f"{info.status.lower()} {age:.0f} days ago, no version is made of it"
        return Item("runs", name, why, _bytes(run), _purge(run))


def _candidate(run: "Run") -> bool:
    """Did training or blending make it? Studies, data and drift reports, and comparisons stay until somebody deletes them."""
    tags = run.data.tags
    failed = run.info.status in ("FAILED", "KILLED")
    return "clipft.key" in tags and ("clipft.model_uri" in tags or "clipft.start" in tags or failed)


def _held(runs: "list[Run]", versions: "list[ModelVersion]") -> set[str]:
    """Runs of versions, and every run that these name in turn, themselves or by a model of theirs."""
    made_by = {uri.removeprefix("models:/"): r.info.run_id for r in runs if (uri := r.data.tags.get("clipft.model_uri"))}
    by_id = {r.info.run_id: r for r in runs}
    held: set[str] = set()
    named = [str(v.run_id) for v in versions]
    for v in versions:
        named += _names(f"{v.source} {getattr(v, 'model_id', '')} {json.dumps(dict(v.tags))}")
    while named:
        name = named.pop()
        run_id = made_by.get(name, name)
        if run_id in by_id and run_id not in held:
            held.add(run_id)
            run = by_id[run_id]
            named += _names(json.dumps([run.data.tags, run.data.params]))
    return held


def _names(text: str) -> list[str]:
    return [m[0] for m in NAMED.finditer(text)]


def _pages(ask: "Callable[[str | None], PagedList[T]]") -> Iterator[T]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _artifact_folders(run: "Run") -> list[Path]:
    """Where a run's artifacts and model lie, where that is a folder of this machine."""
    uri = str(run.info.artifact_uri or "")
    if not uri.startswith("file:") and "://" in uri:
        return []
    own = Path(uri.removeprefix("file://"))
    model = str(run.data.tags.get("clipft.model_uri", "")).removeprefix("models:/")
    found = [own.parent, *([own.parent.parent / "models" / model] if model.startswith("m-") else [])]
    return [f for f in found if f.is_dir()]


def _bytes(run: "Run") -> int:
    return sum(folder_size(f) for f in _artifact_folders(run))


def _purge(run: "Run") -> Callable[[], int]:
    """Delete for good: artifacts first, then the rows, so that a purge that is cut short is found again and finished."""

    def remove() -> int:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        from ... import tracking

        client, run_id = tracking.client(), run.info.run_id
        now = client.get_run(run_id)
        if (now.info.status, now.info.end_time, now.info.lifecycle_stage) != (
            run.info.status,
            run.info.end_time,
            run.info.lifecycle_stage,
        ):
            raise ClipftError(f"run {run_id}", "it was taken up again meanwhile", "It stays.", code="gc.in_use")
        if client.search_model_versions(f"run_id = '{run_id}'"):
            raise ClipftError(f"run {run_id}", "a version was registered of it meanwhile", "It stays.", code="gc.in_use")
        # MLflow has no public call that deletes for good: `mlflow gc` uses the same two of the store, and removes besides every
        # experiment and every model that somebody has deleted, however lately.
        store = SqlAlchemyStore(settings().databases["mlflow"], settings().folder("mlflow", "artifacts").as_uri())
        bytes_ = _bytes(run)
        if now.info.lifecycle_stage != "deleted":
            client.delete_run(run_id)
        models = [
            m
            for m in client.search_logged_models([now.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
            if m.source_run_id == run_id
        ]
        for model in models:
            with suppress(FileNotFoundError):
                get_artifact_repository(model.artifact_location).delete_artifacts()
            client.delete_logged_model(model.model_id)
            store._hard_delete_logged_model(model.model_id)
        with suppress(FileNotFoundError):
            get_artifact_repository(now.info.artifact_uri).delete_artifacts()
        store._hard_delete_run(run_id)
        for folder in _artifact_folders(run):
            shutil.rmtree(folder, ignore_errors=True)
        return bytes_

    return remove

"""What may go, and why: nothing that a registered version, its data, its start model or running work needs.

Runs. A registered version keeps its run, and whatever that run's tags and parameters name (start model, the candidate that it was
blended from), and so on. A run that says it is running is left alone. What else ended long ago and is no version's goes, with its
model and artifacts.
Work in progress. Work folders and staged rows go by the time that has passed since anything in them was written (a running task
writes a checkpoint every few seconds), caches by the time since they were last read: both can be made or fetched again.
Data-set versions, the DVC remote, tuning studies and backups are never touched.
"""

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ..core.errors import ClipftError, Transient
from ..core.settings import settings
from . import airflow_client, databases
from .installation import alone, folder_size

DAY = 86400.0
LOG_BYTES = 64 * 2**20  # of the programs' own log, beyond which its beginning goes
LOG_KEPT = 4 * 2**20
NAMED = re.compile(r"(?<![0-9a-zA-Z])(m-)?[0-9a-f]{32}(?![0-9a-zA-Z])")  # a run, or a logged model


class Keep(BaseSettings):
    """How long things are kept, in days, from `CLIPFT_KEEP_<NAME>`. At least one day: what is younger may be in use."""

    model_config = SettingsConfigDict(env_prefix="CLIPFT_KEEP_", extra="ignore", populate_by_name=True)

    runs: float = Field(
        60, ge=1, description="runs that ended and are no version's: candidates that were not registered, failed ones"
    )
    deleted: float = Field(7, ge=1, description="runs and models that somebody deleted in MLflow")
    work: float = Field(7, ge=1, description="checkpoints and staged rows of work that was given up")
    caches: float = Field(14, ge=1, description="fetched models, shards and DVC objects that nobody read")
    captures: float = Field(30, ge=1, validation_alias="CLIPFT_SERVING_CAPTURE_DAYS", description="captured images")
    logs: float = Field(30, ge=1, description="logs of tasks")
    metadata: float = Field(90, ge=1, description="Airflow's records of runs and tasks")


def keep_of_environment() -> Keep:
    """Raises ClipftError, with the variable's name."""
    try:
        return Keep()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        name = name if name.startswith("CLIPFT_") else f"CLIPFT_KEEP_{name.upper()}"
        raise ClipftError(name, first["msg"], "Give days, at least 1.") from None


@dataclass(frozen=True)
class Item:
    """Something that may go.

    Attributes:
        kind: runs, work, caches, captures, logs, metadata.
        what, reason: for a person.
        bytes: that come back; 0 where that is only known afterwards.
        remove: does it; returns the bytes that came back. Looks again first: what has changed since stays.
    """

    kind: str
    what: str
    reason: str
    bytes: int
    remove: Callable[[], int]


@dataclass(frozen=True)
class Found:
    """What may go, and what was left although it looks old, each with the reason."""

    items: list[Item]
    left: list[str]


def find(keep: Keep | None = None) -> Found:
    """Look at everything; change nothing."""
    keep = keep or keep_of_environment()
    left: list[str] = []
    items: list[Item] = []
    busy = _busy()
    for look in (_runs, _work, _staging, _images, _models, _shards, _dvc_cache, _captures, _logs, _metadata):
        try:
            items += look(keep, left, busy)
        except (Transient, OSError) as error:
            left.append(f"{look.__name__[1:]}: {error}")
    return Found(items, left)


def clear(found: Found) -> dict[str, Any]:
    """Remove what `find` found. Returns bytes that came back and items removed, by kind, and what could not be removed."""
    with alone("gc"):
        freed: dict[str, int] = {}
        count: dict[str, int] = {}
        failed: list[str] = []
        for item in found.items:
            try:
                freed[item.kind] = freed.get(item.kind, 0) + item.remove()
                count[item.kind] = count.get(item.kind, 0) + 1
            except (OSError, ClipftError, Transient) as error:
                failed.append(f"{item.what}: {error}")
        if count.get("runs") or count.get("metadata"):
            for database in databases.all_of_them():
                shrunk = database.shrink()
                freed["databases"] = freed.get("databases", 0) + shrunk
        return {"freed": freed, "removed": count, "failed": failed}


def _busy() -> bool:
    """Is any task of clipft running or about to? Unknown counts as no where nothing answers: then nothing is running it."""
    try:
        return airflow_client.Airflow().running() > 0
    except (Transient, ClipftError):
        return False


# MLflow --------------------------------------------------------------------------------------------------------------


def _runs(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    """Runs and logged models that go."""
    if not Path(settings().tracking_uri.removeprefix("sqlite:///")).exists() and settings().tracking_uri.startswith("sqlite:"):
        return
    from mlflow.entities import ViewType

    from .. import tracking

    client, now = tracking.client(), time.time()
    with tracking.retryable():
        experiments = [e.experiment_id for e in client.search_experiments(ViewType.ALL)]
        every = list(_pages(lambda token: client.search_runs(experiments, run_view_type=ViewType.ALL, page_token=token)))
        versions = list(_pages(lambda token: client.search_model_versions(page_token=token)))
    held = _held(every, versions)
    for run in every:
        info = run.info
        if info.run_id in held:
            continue
        age = (now - (info.end_time or info.start_time) / 1000) / DAY
        name = f"run {info.run_id} ({info.run_name})"
        if info.lifecycle_stage == "deleted":
            if age > keep.deleted:
                yield Item("runs", name, "deleted in MLflow", _run_bytes(run), _purge(run))
        elif age > keep.runs and _candidate(run):
            if info.status in ("RUNNING", "SCHEDULED"):
                left.append(f"{name} says that it is running, since {age:.0f} days; if it is lost, delete it in MLflow")
            else:
                why = f"{info.status.lower()} {age:.0f} days ago, no version is made of it"
                yield Item("runs", name, why, _run_bytes(run), _purge(run))


def _candidate(run: Any) -> bool:
    """Did training or blending make it? Studies, data and drift reports, and comparisons stay until somebody deletes them."""
    tags = run.data.tags
    failed = run.info.status in ("FAILED", "KILLED")
    return "clipft.key" in tags and ("clipft.model_uri" in tags or "clipft.start" in tags or failed)


def _held(runs: list[Any], versions: list[Any]) -> set[str]:
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


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return


def _artifact_folders(run: Any) -> list[Path]:
    """Where a run's artifacts and model lie, where that is a folder of this machine."""
    uri = str(run.info.artifact_uri or "")
    if not uri.startswith("file:") and "://" in uri:
        return []
    own = Path(uri.removeprefix("file://"))
    model = str(run.data.tags.get("clipft.model_uri", "")).removeprefix("models:/")
    found = [own.parent, *([own.parent.parent / "models" / model] if model.startswith("m-") else [])]
    return [f for f in found if f.is_dir()]


def _run_bytes(run: Any) -> int:
    return sum(folder_size(f) for f in _artifact_folders(run))


def _purge(run: Any) -> Callable[[], int]:
    """Delete for good: artifacts first, then the rows, so that a purge that is cut short is found again and finished."""

    def remove() -> int:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        from .. import tracking

        client, run_id = tracking.client(), run.info.run_id
        now = client.get_run(run_id)
        if (now.info.status, now.info.end_time, now.info.lifecycle_stage) != (
            run.info.status,
            run.info.end_time,
            run.info.lifecycle_stage,
        ):
            raise ClipftError(f"run {run_id}", "it was taken up again meanwhile", "It stays.")
        if client.search_model_versions(f"run_id = '{run_id}'"):
            raise ClipftError(f"run {run_id}", "a version was registered of it meanwhile", "It stays.")
        store = SqlAlchemyStore(settings().databases["mlflow"], settings().folder("mlflow", "artifacts").as_uri())
        bytes_ = _run_bytes(run)
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


# Work and caches -----------------------------------------------------------------------------------------------------


def _work(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    yield from _stale(settings().root / "work", keep.work, "work", "nothing was written there for {:.0f} days")


def _staging(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    yield from _stale(settings().root / "staging", keep.work, "work", "rows staged {:.0f} days ago")


def _stale(root: Path, days: float, kind: str, reason: str) -> Iterator[Item]:
    """Folders in which nothing was written for some days."""
    for folder in _children(root):
        age = _written(folder)
        if folder.is_dir() and age > days:
            yield Item(
                kind, str(folder), reason.format(age), folder_size(folder), _remove(folder, lambda f: _written(f) > days)
            )


def _models(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    yield from _unread(_children(settings().root / "cache" / "models"), keep, left, busy, "a model's package that nobody read")


def _shards(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    shards = (p for p in _children(settings().root / "cache" / "shards") if p.suffix == ".tar")
    yield from _unread(shards, keep, left, busy, "a shard that nobody read")


def _dvc_cache(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    """DVC's own cache in the repository of data sets: what is in the remote, and not the working copy's too."""
    from ..data import versioning

    cache = versioning.working_copy() / ".dvc" / "cache" / "files" / "md5"
    remote = settings().remote
    objects = (p for folder in _children(cache) for p in _children(folder))

    def elsewhere(path: Path) -> bool:
        there = Path(remote) / "files" / "md5" / path.parent.name / path.name
        return "://" in remote or (there.is_file() and there.stat().st_size == path.stat().st_size)

    spare = (p for p in objects if p.stat().st_nlink == 1 and elsewhere(p))
    yield from _unread(spare, keep, left, busy, "DVC has it in its remote too")


def _unread(paths: Any, keep: Keep, left: list[str], busy: bool, what: str) -> Iterator[Item]:
    """Cached files and folders that were not read for some days; all stay while a task may be about to read them."""
    stale = [(p, age) for p in paths if p.suffix not in (".lock", ".part") and (age := _read(p)) > keep.caches]
    if stale and busy:
        left.append(f"{len(stale)} of {stale[0][0].parent}: a task is running; they go another time")
        return
    for path, age in stale:
        size = folder_size(path) if path.is_dir() else path.stat().st_size
        yield Item("caches", str(path), f"{what} for {age:.0f} days", size, _remove(path, lambda p: _read(p) > keep.caches))


def _images(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    """Decoded images beyond the bound (a bound that was lowered, say), those read longest ago first."""
    files = sorted((settings().root / "cache" / "images").rglob("*.npy"), key=lambda p: p.stat().st_mtime)
    over = sum(p.stat().st_size for p in files) - settings().cache_gb * 2**30
    for path in files:
        if over <= 0 or _read(path) < 1:
            return
        over -= path.stat().st_size
        reason = f"decoded images take more than CLIPFT_CACHE_GB = {settings().cache_gb:g}"
        yield Item("caches", str(path), reason, path.stat().st_size, _remove(path, lambda p: _read(p) >= 1))


def _captures(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    """Captured images past their age, and halves of one that was never whole. The server does the same while it runs."""
    for domain in _children(settings().root / "captures"):
        old: list[Path] = []
        for path in _children(domain):
            age = _written(path)
            if path.suffix == ".json":
                with suppress(OSError, ValueError, KeyError, TypeError):
                    age = (time.time() - float(json.loads(path.read_text())["time"])) / DAY
            elif path.with_suffix(".json").exists():
                continue
            if age > keep.captures:
                old.append(path)
        if old:
            both = [p for o in old for p in {o, o.with_suffix(".image")} if p.exists()]
            size = sum(p.stat().st_size for p in both)
            reason = f"captured more than {keep.captures:g} days ago"
            yield Item("captures", f"{len(old)} images of {domain.name}", reason, size, _remove_all(both))


# Airflow -------------------------------------------------------------------------------------------------------------


def _logs(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    root = Path(os.environ.get("AIRFLOW__LOGGING__BASE_LOG_FOLDER", settings().root / "airflow" / "logs"))
    old = [p for p in root.rglob("*") if p.is_file() and _written(p) > keep.logs] if root.is_dir() else []
    if old:
        size = sum(p.stat().st_size for p in old)
        yield Item("logs", f"{len(old)} files of {root}", f"written more than {keep.logs:g} days ago", size, _remove_all(old))
    stack = settings().root / "logs" / "stack.log"
    if stack.exists() and stack.stat().st_size > LOG_BYTES:
        yield Item("logs", str(stack), "only its end is kept", stack.stat().st_size - LOG_KEPT, lambda: _cut(stack))


def _cut(log: Path) -> int:
    """Keep the end of a file that programs append to; what they write meanwhile comes after it."""
    with log.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - LOG_KEPT)
        end = file.read()
        file.seek(0)
        file.truncate()
        file.write(end)
    return size - log.stat().st_size


def _metadata(keep: Keep, left: list[str], busy: bool) -> Iterator[Item]:
    """Airflow's records, by its own `airflow db clean`."""
    database = airflow_client.database()
    if "dag_run" not in database.tables():
        return
    if late := database.count(f"dag_run where state in ('running', 'queued') and start_date < '{_date(keep.metadata)}'"):
        left.append(f"Airflow's records: {late} runs that began more than {keep.metadata:g} days ago are not over")
        return
    rows = airflow_client.old_records(keep.metadata)
    if rows:
        what = f"{sum(rows.values()):,} records of Airflow"
        reason = f"older than {keep.metadata:g} days: " + ", ".join(f"{n} {count}" for n, count in sorted(rows.items()))
        yield Item("metadata", what, reason, 0, lambda: airflow_client.clean(keep.metadata))


# Files ---------------------------------------------------------------------------------------------------------------


def _children(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.is_symlink()) if folder.is_dir() else []


def _date(days: float) -> str:
    return datetime.fromtimestamp(time.time() - days * DAY, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _age(path: Path, times: Callable[[os.stat_result], float]) -> float:
    """Days since the newest of the times of a file, or of the files below a folder."""
    newest = 0.0
    for p in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(FileNotFoundError):
            newest = max(newest, times(p.stat()))
    return (time.time() - newest) / DAY


def _written(path: Path) -> float:
    return _age(path, lambda s: s.st_mtime)


def _read(path: Path) -> float:
    """Days since it was read or written; a disk that does not note reads counts from writing."""
    return _age(path, lambda s: s.st_mtime if stat.S_ISDIR(s.st_mode) else max(s.st_atime, s.st_mtime))


def _remove(path: Path, still: Callable[[Path], bool]) -> Callable[[], int]:
    def remove() -> int:
        if not path.exists() or not still(path):
            return 0
        size = folder_size(path) if path.is_dir() else path.stat().st_size
        if path.is_dir():
            gone = path.with_name(path.name + ".going")  # at once, for whoever looks
            os.replace(path, gone)
            shutil.rmtree(gone)
        else:
            path.unlink()
        return size

    return remove


def _remove_all(paths: list[Path]) -> Callable[[], int]:
    def remove() -> int:
        freed = 0
        for path in paths:
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        return freed

    return remove

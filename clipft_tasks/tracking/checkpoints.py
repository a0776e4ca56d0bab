"""Checkpoints kept with their run, so that another machine may go on with the training."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import ClassVar

import mlflow
from mlflow.exceptions import MlflowException

from ..contracts.base import VersionedRecord
from ..core.console import say
from .connection import client, retryable

CHECKPOINT = "clipft.checkpoint"  # the run's tag
FOLDER = "checkpoints"  # among its artifacts


class SavedCheckpoint(VersionedRecord):
    """What the tag says: the artifact's name, its digest, and what the file is called on a machine that trains."""

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the checkpoint"

    name: str
    sha256: str
    file: str


def save_checkpoint(run_id: str, path: Path) -> None:
    """Keep a checkpoint with a run, so that another machine may go on from it; all others are removed.

    The run's tag that names it comes last: what it names is whole. What a kill left beside it goes with the next one.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    store = client()
    name = f"{FOLDER}/{path.stem}-{digest[:12]}.pt"
    copy = path.with_name(name.rpartition("/")[2])
    copy.unlink(missing_ok=True)
    os.link(path, copy)
    try:
        store.log_artifact(run_id, str(copy), FOLDER)
    finally:
        copy.unlink()
    saved = SavedCheckpoint(name=name, sha256=digest, file=path.name)
    store.set_tag(run_id, CHECKPOINT, json.dumps(saved.to_json()))
    _delete_artifacts(run_id, keep=name)


def fetch_checkpoint(run_id: str, folder: Path) -> Path | None:
    """The checkpoint that another machine left with a run, put into `folder` unless one as new is there; else None.

    One that is not what its digest says is ignored, with a line in the log.
    """
    tag = client().get_run(run_id).data.tags.get(CHECKPOINT)
    if not tag:
        return None
    about = _read(tag)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / about.file
    if any(p.name >= target.name for p in folder.glob("step-*.pt")):
        return None
    incoming = folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir()
    try:
        with retryable():
            got = Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/{about.name}", dst_path=str(incoming)))
        with got.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != about.sha256:
                raise OSError("its digest is another")
        os.replace(got, target)
    except (MlflowException, OSError) as error:
        say(f"Checkpoint {about.name} of run {run_id} cannot be used ({error}): training begins again.")
        return None
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return target


def delete_checkpoint(run_id: str) -> None:
    """Remove a finished run's checkpoint, and what a kill left of others."""
    if CHECKPOINT in client().get_run(run_id).data.tags:
        client().delete_tag(run_id, CHECKPOINT)
    _delete_artifacts(run_id)


def _read(tag: str) -> SavedCheckpoint:
    return SavedCheckpoint.from_json(json.loads(tag))


def _delete_artifacts(run_id: str, keep: str = "") -> None:
    """Remove a run's checkpoints but one, where the store can do that; what stays takes space and nothing else."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        store = get_artifact_repository(client().get_run(run_id).info.artifact_uri)
        for found in store.list_artifacts(FOLDER):
            if found.path != keep:
                store.delete_artifacts(found.path)
    except Exception as error:  # stores raise what they like
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(f"Old checkpoints of run {run_id} stay in MLflow: {why}")

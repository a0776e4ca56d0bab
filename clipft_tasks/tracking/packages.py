"""Model packages: logged with a run, and fetched into this machine's cache."""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import cast

import mlflow
from filelock import FileLock
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ..core.errors import ClipftError
from ..core.settings import settings
from .connection import client, retryable

DIGESTS = "clipft.digests"  # tag of a version: sha256 of each file of its package, as JSON
REPACKED = "clipft.repacked"  # tag of a version of whose package rows were erased since it was registered


def log_model(package: Path) -> str:
    """Log a model package to the active run as a pyfunc model (models from code, no pickles); returns its URI."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    code = Path(__file__).parents[1] / "model" / "pyfunc.py"
    columns: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, name, required=False) for name in ("image", "text")]
    embedding = Array(DataType.double)
    answers: list[ColSpec | TensorSpec] = [
        ColSpec(embedding, "image_embedding", required=False),
        ColSpec(embedding, "text_embedding", required=False),
        ColSpec(DataType.double, "similarity", required=False),
    ]
    with warnings.catch_warnings():  # the signature is declared, so no example has to show it
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code),
            artifacts={"package": str(package)},
            signature=ModelSignature(inputs=Schema(columns), outputs=Schema(answers)),
            pip_requirements=["open_clip_torch", "transformers", "timm", "torch", "pillow", "pandas", "mlflow"],
        )
    return cast(str, info.model_uri)


def fetch_package(version: ModelVersion) -> Path:
    """The package of a registered version, in this machine's cache, as it was registered.

    Raises: ClipftError where a file of it is another one than was registered: replaced in the store since, or damaged here.
    """
    what = f"model {version.name}/{version.version}"
    folder = _fetch(f"models:/{version.name}/{version.version}", str(version.source), what)
    registered = version.tags.get(DIGESTS)
    if registered is None:  # by a release that kept none
        return folder
    expected, found = json.loads(registered), digests(folder)
    if expected != found and REPACKED in version.tags:  # this machine's copy may be of before
        shutil.rmtree(folder, ignore_errors=True)
        folder = _fetch(f"models:/{version.name}/{version.version}", str(version.source), what)
        found = digests(folder)
    changed = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    if changed := sorted(changed, key=lambda name: (not name.endswith(".safetensors"), name)):  # weights first
        raise ClipftError(
            what,
            f"{', '.join(changed[:3])} of its package {'is' if len(changed) == 1 else 'are'} not what was registered",
            f"If only this machine's copy is damaged, removing {folder} fetches it anew. Otherwise somebody replaced it in the store.",
            code="package.changed",
        )
    return folder


def digests(folder: Path) -> dict[str, str]:
    """sha256 of each file of a package, by its path in there."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def fetch_candidate(run_id: str) -> Path:
    """The package that a run logged. Raises ClipftError when the run did not finish."""
    uri = client().get_run(run_id).data.tags.get("clipft.model_uri")
    if not uri:
        raise ClipftError(
            f"run {run_id}",
            "it has no model: training did not finish",
            "Run finetune again; it resumes.",
            code="package.not_trained",
        )
    return _fetch(uri, uri, f"the model of run {run_id}")


def _fetch(uri: str, identity: str, what: str) -> Path:
    client()
    folder = settings().folder("cache", "models") / hashlib.sha256(identity.encode()).hexdigest()[:24]
    with FileLock(str(folder) + ".lock"):
        if not folder.exists():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            try:
                with retryable():
                    got = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(part))
            except (MlflowException, OSError) as error:
                raise ClipftError(
                    what, f"its package cannot be fetched: {error}", "Was its run deleted?", code="package.not_available"
                ) from error
            os.replace(Path(got) / "artifacts" / "package", folder)
            shutil.rmtree(part, ignore_errors=True)
    return folder

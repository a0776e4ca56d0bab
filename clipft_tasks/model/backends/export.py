"""Towers of a model package as ONNX files: made in a process of their own, kept in the cache of this machine.

Exporting takes tens of seconds of Python and much memory; in a process of its own, at low priority, it costs a server that answers
meanwhile neither. Run as `python -m clipft_tasks.model.backends.export PACKAGE SIDE FOLDER`.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock

from ...contracts.base import Record
from ...core.errors import ClipftError
from ...core.files import atomic_folder
from ...core.settings import settings
from .. import build
from ..clip import Clip
from .base import TOWERS, Graph, TowerKind

FORMAT = 1  # raise when what is exported changes, so that graphs are made anew
NEEDED = ("onnx", "onnxscript")
MADE_WITH = ("torch", "onnx", "onnxscript", "open_clip_torch", "timm", "transformers")
INDEX = "graphs.json"
SECONDS = 900.0  # after which an export is given up
OPSET = 18
TEXTS = ("a photo of a thing", "another photo of some other thing that has a few more words")


class ExportedTower(Record):
    """One tower: its files with the sha256 of each, or why there are none."""

    files: dict[str, str] = {}
    problem: str = ""


class ExportedTowers(Record):
    """What stands in a folder of graphs."""

    towers: dict[TowerKind, ExportedTower]


def missing() -> str:
    """The packages that exporting needs and that are not there; "" for none."""
    return ", ".join(name for name in NEEDED if _version(name) is None)


def graph_of(clip: Clip, kind: TowerKind, side: int) -> Graph:
    """A tower of a package, exported when it is not in the cache; what is damaged there is made anew.

    Raises: ClipftError where it cannot be exported.
    """
    folder = cache_folder(clip, side)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        found = _read(folder)
        if found is None:
            _export_apart(clip, side, folder)
            found = _read(folder)
        if found is None:
            raise _failed(clip, kind, "what was written cannot be read again")
        os.utime(folder)  # `clipft gc` goes by the last use
    if problem := found.towers[kind].problem:
        raise _failed(clip, kind, problem)
    return Graph(folder / f"{kind}.onnx", kind)


def cache_folder(clip: Clip, side: int) -> Path:
    """Where the graphs of a model lie: by its weights and configuration, the side, and the versions of what makes them."""
    key = [FORMAT, clip.digest, clip.config, side, [f"{name} {_version(name)}" for name in MADE_WITH]]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return settings().folder("cache", "graphs") / digest[:32]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _failed(clip: Clip, kind: TowerKind, why: str) -> ClipftError:
    return ClipftError(
        f"the {kind} tower of {clip.source}",
        f"it cannot be exported ({why})",
        "It runs with torch.",
        code="backend.not_exported",
    )


def _read(folder: Path) -> ExportedTowers | None:
    """What a folder says it holds, if it does."""
    try:
        found = ExportedTowers.model_validate_json((folder / INDEX).read_bytes())
        for tower in found.towers.values():
            if any(_digest(folder / name) != digest for name, digest in tower.files.items()):
                return None
    except (OSError, ValueError):
        return None
    return found if set(found.towers) == set(TOWERS) else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _export_apart(clip: Clip, side: int, folder: Path) -> None:
    """Export both towers in a process of its own, whole or not at all."""
    if clip.folder is None:
        raise _failed(clip, "image", "it is not of a package")
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with atomic_folder(folder) as building:
        command = [sys.executable, "-m", __name__, str(clip.folder), str(side), str(building)]
        with tempfile.TemporaryFile("w+") as said:
            child = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=said, stderr=said)
            try:
                status = child.wait(SECONDS)
            except subprocess.TimeoutExpired:
                raise _failed(clip, "image", f"it took more than {SECONDS:g} s") from None
            finally:
                child.kill()
                child.communicate()
            said.seek(0)
            lines = said.read().strip().splitlines()
        if status:
            raise _failed(clip, "image", (lines or [f"status {status}"])[-1][:300])


class _Tower(torch.nn.Module):
    """One tower as a module of one input: pixels, uint8, or token ids."""

    def __init__(self, clip: Clip, kind: TowerKind) -> None:
        super().__init__()
        self.model = clip.model
        self._clip, self._kind = clip, kind

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._kind == "image":
            return self._clip.image_features(self._clip.normalize(inputs)).float()
        return self._clip.text_features(inputs).float()


def export_tower(clip: Clip, kind: TowerKind, side: int, path: Path) -> None:
    """Write a tower as ONNX. Raises whatever torch's exporter raises."""
    dynamic = torch.export.Dim.DYNAMIC
    if kind == "image":
        example = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        free = {0: dynamic}
    else:
        example = clip.tokenize(TEXTS)
        free = {0: dynamic, 1: dynamic} if clip.takes_any_length else {0: dynamic}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Tower(clip, kind).eval(), (example,), str(path), dynamo=True, input_names=["inputs"], output_names=["features"],
            dynamic_shapes=(free,), opset_version=OPSET, verbose=False, external_data=True,
        )  # fmt: skip


def _end_with_parent() -> None:
    """The process that asked holds the other end of standard input: when it is gone, nobody waits for this one."""
    sys.stdin.read()
    os._exit(1)


def main(package: Path, side: int, out: Path) -> None:
    """Export both towers of a package into a folder that is there and empty."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(1)
    clip = build.from_folder(package, source=str(package))
    towers: dict[TowerKind, ExportedTower] = {}
    for kind in TOWERS:
        try:
            export_tower(clip, kind, side, out / f"{kind}.onnx")
        except Exception as error:  # a tower that cannot be exported is no reason to try again at each start
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            towers[kind] = ExportedTower(problem=f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300])
            for left in out.glob(f"{kind}.onnx*"):
                left.unlink()
        else:
            towers[kind] = ExportedTower(files={path.name: _digest(path) for path in sorted(out.glob(f"{kind}.onnx*"))})
    (out / INDEX).write_text(ExportedTowers(towers=towers).model_dump_json(indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

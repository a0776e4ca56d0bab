"""Checks of an objective on a model's towers: a batch in parts, or shared by processes, has the gradient of the batch at once."""

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from ..contracts.plan import Precision
from ..data import augment
from ..data.loader import Batch
from ..devices.precision import precision_context
from ..model import similarity as similarities
from ..model.clip import Clip, OpenClipConfig
from ..objectives.base import Objective, Pairs
from ..spec import ObjectiveSpec
from . import distributed, step
from .feature_checks import CAPTIONS, CLASSES, FailedCheckError, Subject, seeded, total

MODULE = "clipft_tasks.train.step_checks"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}  # of a gradient's norm; bf16 rounds with the size of the part
WHOLE, PARTS = 99, 5


@dataclass(frozen=True)
class Case:
    """One step's gradient: of which objective, how exact the towers, how many pairs a part."""

    objective: ObjectiveSpec
    precision: Precision = "fp32"
    micro: int = WHOLE
    rows: int = 12


CONFIG: OpenClipConfig = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 6, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
}


class _Tokenizer:
    context_length = CONFIG["model_cfg"]["text_cfg"]["context_length"]


def a_clip(seed: int, similarity: similarities.Similarity) -> Clip:
    """A model of two towers with a block each."""
    with seeded(seed):
        model = open_clip.CLIP(**copy.deepcopy(CONFIG["model_cfg"])).train()
    return Clip(model, _Tokenizer(), copy.deepcopy(CONFIG), "miniature", "", similarity=similarity)


def a_batch(rows: int, world: distributed.World = distributed.ALONE) -> Batch:
    """Random images over a few captions and classes; this process's share of them."""
    share = -(-rows // world.size)
    mine = slice(min(world.rank * share, rows), min((world.rank + 1) * share, rows))
    with seeded(7):
        tokens = torch.randint(1, 31, (CAPTIONS, 6))
        images = torch.randint(0, 256, (rows, 3, 16, 16), dtype=torch.uint8)
        caption = torch.randint(0, CAPTIONS, (rows,))
    tokens[:, -1] = 31  # the end token, where the text tower looks
    return Batch(
        side=16,
        images=images[mine],
        geometry=augment.draw(rows, augment.PLAIN, 0, 0).part(mine),
        rows=mine,
        tokens=tokens,
        caption=caption,
        label=caption % (len(CLASSES) + 1) - 1,
        keys=np.arange(rows).astype(str),
        new=torch.arange(rows) % 3 == 0,
    )


def _parts(case: Case) -> tuple[Objective, step.Towers, step.Towers | None]:
    subject = Subject(case.objective)
    objective, similarity = subject.make(), subject.similarity(CONFIG["model_cfg"]["embed_dim"])
    clip = a_clip(1, similarity)

    def towers(clip: Clip) -> step.Towers:
        return step.Towers(clip, clip.image_features, clip.text_features, partial(precision_context, "cpu", case.precision))

    if not objective.needs_start:
        return objective, towers(clip), None
    frozen = a_clip(2, copy.deepcopy(similarity))
    frozen.model.eval().requires_grad_(False)
    frozen.similarity.requires_grad_(False)
    return objective, towers(clip), towers(frozen)


def _learned(objective: Objective, clip: Clip) -> dict[str, torch.nn.Parameter]:
    found = dict(clip.model.named_parameters())
    found |= {f"similarity.{name}": p for name, p in clip.similarity.named_parameters()}
    return found | {f"objective.{name}": p for name, p in objective.named_parameters()}


def stepped(case: Case, world: distributed.World = distributed.ALONE) -> dict[str, Tensor]:
    """The gradient of a step as training takes it, by parameter."""
    objective, towers, start = _parts(case)
    batch = a_batch(case.rows, world)
    step.backward(towers, objective, batch, micro_batch=case.micro, seed=5, world=world, start=start, progress=0.5)
    learned = _learned(objective, towers.clip)
    whole = [p for name, p in learned.items() if name.startswith(("similarity.", "objective.")) or name == "logit_scale"]
    world.sum_gradients(learned.values(), whole)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in learned.items()}


def plain(case: Case) -> dict[str, Tensor]:
    """The same gradient, by nothing but one forward and one backward pass over the whole batch."""
    objective, towers, start = _parts(case)
    batch = a_batch(case.rows)

    def seen(towers: step.Towers, before: Pairs | None) -> Pairs:
        image, text = towers.image_features(batch, slice(None), 5), towers.text_features(batch.tokens, 5)
        return step.as_pairs(towers.clip, image, text, batch, before, 0.5)

    learned = _learned(objective, towers.clip)
    with seeded():
        loss = total(objective, seen(towers, seen(start, None) if start else None))
    found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(learned, found, strict=True))


def agree(one: dict[str, Tensor], other: dict[str, Tensor], precision: Precision) -> None:
    """Raise Failed unless two gradients are the same, but for rounding."""
    if one.keys() != other.keys():
        raise FailedCheckError(f"gradients reach other parameters: {', '.join(sorted(one.keys() ^ other.keys()))}")
    first, second = (torch.cat([g.flatten() for g in found.values()]) for found in (one, other))
    if not (first.isfinite().all() and second.isfinite().all()):
        raise FailedCheckError("a gradient is no number")
    apart = (first - second).norm() / first.norm().clamp_min(1e-2)  # of a gradient that is nearly none, only rounding is left
    if apart > TOLERANCE[precision]:
        raise FailedCheckError(f"gradients are {float(apart):.2g} apart, in proportion to their length")


def in_parts(subject: Subject) -> None:
    """A batch in parts (gradient cache) has the gradient of the batch at once, in each precision."""
    for precision in PRECISIONS:
        case = Case(subject.objective, precision)
        expected = plain(case)
        for micro in (WHOLE, PARTS):
            with labeled(f"{precision}, {'in parts' if micro == PARTS else 'at once'}"):
                agree(expected, stepped(replace(case, micro=micro)), precision)


def process_cases(subject: Subject) -> list[Case]:
    """What several processes are asked; a single row leaves the second one without any."""
    sizes: list[tuple[int, Precision, int]] = [(12, "fp32", PARTS), (12, "bf16", PARTS), (7, "fp32", WHOLE), (1, "fp32", WHOLE)]
    return [Case(subject.objective, precision, micro, rows) for rows, precision, micro in sizes]


def in_processes(found: Sequence[tuple[Case, dict[str, Tensor] | str]]) -> None:
    """Two processes that share a batch end with the gradient of one."""
    for case, gradients in found:
        with labeled(f"{case.precision}, {case.rows} pairs in two processes"):
            if isinstance(gradients, str):
                raise FailedCheckError(gradients)
            agree(plain(case), gradients, case.precision)


@contextmanager
def labeled(where: str) -> Iterator[None]:
    try:
        yield
    except FailedCheckError as failed:
        raise FailedCheckError(f"{where}: {failed}") from None


def two_processes(cases: Iterable[Case], seconds: float = 300) -> list[tuple[Case, dict[str, Tensor] | str]]:
    """The gradients of steps that two processes take together, or what went wrong instead."""
    cases = list(cases)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        content = [asdict(case) | {"objective": case.objective.model_dump()} for case in cases]
        (Path(folder) / "cases.json").write_text(json.dumps(content))
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        free.close()
        started = []
        try:
            for rank in "01":
                command, of_rank = [sys.executable, "-m", MODULE, folder], {"RANK": rank, "LOCAL_RANK": rank}
                started.append(subprocess.Popen(command, env=env | of_rank, stderr=subprocess.PIPE, text=True))
            said = [process.communicate(timeout=seconds)[1] for process in started]
        except subprocess.TimeoutExpired:
            return [(case, f"two processes did not end within {seconds:.0f} s") for case in cases]
        finally:
            for process in started:
                process.kill()
        if any(process.returncode for process in started):
            return [(case, "a process ended: " + (said[0] or said[1]).strip().splitlines()[-1]) for case in cases]
        return list(zip(cases, torch.load(Path(folder) / "found.pt", weights_only=True), strict=True))


def _take_part(folder: Path) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    world = distributed.initialize()
    found: list[dict[str, Tensor] | str] = []
    try:
        for content in json.loads((folder / "cases.json").read_text()):
            case = Case(**content | {"objective": ObjectiveSpec.model_validate(content["objective"])})
            try:
                found.append(stepped(case, world))
            except Exception as error:  # of the objective, so on both: they stay in step
                found.append(f"{type(error).__name__}: {error}")
        if world.is_main_process:
            torch.save(found, folder / "found.pt")
    finally:
        distributed.shut_down()


if __name__ == "__main__":
    _take_part(Path(sys.argv[1]))

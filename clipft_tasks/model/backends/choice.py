"""Which backend runs a tower: the fastest of those that give torch's answers, measured here and now."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from ...core.decision import Decision
from ...core.errors import ClipftError
from ...core.plugins import classes
from ...devices import backend
from ..clip import Clip
from . import export, torch
from .base import Backend, Graph, Runner, SharedRunner, TowerKind

BACKENDS = classes(
    "backend",
    Backend,  # type: ignore[type-abstract]  # only subclasses are made
    {"openvino": "clipft_tasks.model.backends.openvino:OpenVino", "onnx": "clipft_tasks.model.backends.onnx:OnnxRuntime"},
)
AUTO, TORCH = "auto", "torch"
Outcome: TypeAlias = Literal[
    "comparing", "fastest", "set", "slower", "not_installed", "other_answers", "failed", "other_device"
]

COSINE, LENGTH = 0.9999, 0.01  # least cosine of an embedding with torch's; largest difference of their lengths, relative
BATCHES = (1, 8)
WARM = (*range(1, 9), 16, 32)  # batches that are run once before traffic meets them: libraries prepare for each size
ROUNDS, SECONDS = 7, 4.0  # of the comparison, whichever ends first, but no fewer than two rounds
GAIN = 1.05  # below which torch stays
TWICE = 512 * 2**20  # bytes up to which a graph is opened for forward passes side by side, too, which takes its memory again
TEXTS = (
    "a", "a photo of a thing", "two photos of some other things, one of them with a great many more words than the other one has",
    "ein Bild", "12 mm", "???", "a red square on a blue square", "noise",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What runs one tower.

    Attributes:
        decision: the backend and why; `measured` has milliseconds by backend and batch.
        outcome: the reason in one word.
        runner: None for torch, which runs the tower where it always does.
    """

    decision: Decision[str]
    outcome: Outcome
    runner: Runner | None = None


@dataclass
class _Candidate:
    name: str
    run: Runner
    seconds: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch in BATCHES})

    def median(self, batch: int) -> float:
        return float(np.median(self.seconds[batch]))

    @property
    def cost(self) -> float:
        """The geometric mean of its medians, seconds."""
        return float(np.exp(np.mean([np.log(self.median(batch)) for batch in BATCHES])))


def choose(
    clip: Clip, kind: TowerKind, side: int, samples: Sequence[np.ndarray], wanted: str = AUTO, threads: int = 1, lanes: int = 1
) -> Choice:
    """The backend that should run a tower. Takes seconds, and tens of them where the tower must be exported first.

    Args:
        side: of the images that will come.
        samples: inputs that a backend must agree with torch on, each of at least one row; see `samples_of`.
        wanted: auto, torch, or a backend that is to be taken whatever it costs, provided that it agrees.
        threads: that it may use.
        lanes: threads that will ask for forward passes of images at once. Texts gain more from a batch: a short one takes less time than
            reading the weights.
    Raises: ClipftError where a backend is wanted that there is not or that is not installed.
    """
    names, lanes = available(wanted), lanes if kind == "image" else 1
    if wanted == TORCH:
        return _torch("set", "it is set")
    if not backend(clip.device).is_host:
        return _torch("other_device", f"the model is on {clip.device.type}, and the others run on the CPU")
    if not names:
        return _torch("not_installed", "no other is installed (the extra `fast`)")
    reference = _Candidate(TORCH, torch.runner(clip, kind))
    try:
        graph = export.graph_of(clip, kind, side)
    except ClipftError as error:
        return _torch("failed", error.why)
    candidates, refused = [], []
    for name in names:
        try:
            candidate = _Candidate(name, BACKENDS.load(name)().open(graph, threads))
            if problem := disagreement(reference.run, candidate.run, samples):
                refused.append(("other_answers", f"{name} {problem}"))
            else:
                candidates.append(candidate)
        except Exception as error:  # whatever a library raises for a graph, torch still runs the tower
            refused.append(("failed", f"{name} cannot run it ({_short(error)})"))
    if not candidates:
        outcome: Outcome = "other_answers" if any(kind == "other_answers" for kind, _ in refused) else "failed"
        return _torch(outcome, "; ".join(why for _, why in refused))
    if wanted != AUTO:
        run = _for_lanes(candidates[0], graph, threads, lanes, reference, samples)
        return Choice(Decision(wanted, "it is set"), "set", run)
    _measure([reference, *candidates], samples)
    measured = {f"{c.name} batch {b} ms": round(c.median(b) * 1000, 2) for c in (reference, *candidates) for b in BATCHES}
    best = min(candidates, key=lambda candidate: candidate.cost)
    gain = reference.cost / best.cost
    also = "".join(f"; {why}" for _, why in refused)
    if gain < GAIN:
        return Choice(Decision(TORCH, f"{best.name} is {gain:.2f} times as fast{also}", measured), "slower")
    run = _for_lanes(best, graph, threads, lanes, reference, samples)
    return Choice(Decision(best.name, f"{gain:.2f} times as fast as torch here{also}", measured), "fastest", run)


def _for_lanes(
    chosen: _Candidate, graph: Graph, threads: int, lanes: int, reference: _Candidate, samples: Sequence[np.ndarray]
) -> Runner:
    """The runner of a backend that was chosen, warm; for several lanes where the graph is not too large for that."""
    _warm(chosen.run, samples)
    if lanes < 2 or sum(path.stat().st_size for path in graph.path.parent.glob(f"{graph.path.name}*")) > TWICE:
        return chosen.run
    runners = BACKENDS.load(chosen.name)().open_lanes(graph, threads, lanes)
    for run in dict.fromkeys(runners):  # some libraries give the same one for each
        if disagreement(reference.run, run, samples[-1:]):
            return chosen.run
        _warm(run, samples)
    return SharedRunner(chosen.run, runners)


def available(wanted: str = AUTO) -> list[str]:
    """Backends that may be taken. Raises ClipftError where one is wanted that there is not or that is not installed."""
    if wanted == TORCH:
        return []
    if wanted == AUTO:
        return [name for name in BACKENDS.names() if BACKENDS.load(name).is_installed()] if not export.missing() else []
    backend = BACKENDS.load(wanted)
    lacking = export.missing() or ("" if backend.is_installed() else backend.package)
    if lacking:
        raise ClipftError(
            f"the backend {wanted}", f"{lacking} is not installed", "Install `clipft[fast]`, or leave the choice to the server.",
            code="backend.not_installed",
        )  # fmt: skip
    return [wanted]


def samples_of(clip: Clip, kind: TowerKind, side: int, images: np.ndarray, texts: Sequence[str]) -> list[np.ndarray]:
    """Inputs to compare backends on: what a package recorded, and made ones of other kinds.

    Args:
        images: uint8 (n, 3, side, side).
    """
    if kind == "text":
        return [clip.tokenize(some).numpy() for some in ([*texts[:16]], [*TEXTS], [TEXTS[0]], [" ".join(TEXTS) * 3]) if some]
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    made = [
        np.zeros((3, side, side), np.uint8),
        np.full((3, side, side), 255, np.uint8),
        np.broadcast_to(ramp, (3, side, side)),
        np.broadcast_to(ramp[:, None], (3, side, side)),
        rng.integers(0, 256, (3, side, side), dtype=np.uint8),
        np.repeat(rng.integers(0, 256, (1, side, side), dtype=np.uint8), 3, 0),
    ]
    recorded = [images[:8]] if len(images) and images.shape[-1] == side else []
    return [*recorded, np.stack(made), np.stack(made[4:5])]


def disagreement(reference: Runner, other: Runner, samples: Sequence[np.ndarray]) -> str:
    """In which way a backend's embeddings are not those of torch; "" where they are."""
    for inputs in samples:
        expected, given = reference(inputs).astype(np.float64), other(inputs).astype(np.float64)
        if expected.shape != given.shape or not np.isfinite(given).all():
            return f"gives {given.shape} of {expected.shape} or what is no number"
        lengths, others = np.linalg.norm(expected, axis=1), np.linalg.norm(given, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = float(((expected * given).sum(1) / (lengths * others)).min())
            longer = float(np.abs(others / lengths - 1).max())
        if not cosine >= COSINE or not longer <= LENGTH:
            return f"gives other answers than torch (cosine {cosine:.5f}, must be {COSINE}; length off by {longer:.1%})"
    return ""


def _measure(candidates: Sequence[_Candidate], samples: Sequence[np.ndarray]) -> None:
    """Time them in turns, so that whatever else the machine does meets all of them alike."""
    inputs = {batch: _batch(samples, batch) for batch in BATCHES}
    for candidate in candidates:  # a new shape costs once
        for some in inputs.values():
            candidate.run(some)
    until = time.perf_counter() + SECONDS
    for number in range(ROUNDS):
        if number >= 2 and time.perf_counter() > until:
            break
        for batch, some in inputs.items():
            for candidate in candidates:
                began = time.perf_counter()
                candidate.run(some)
                candidate.seconds[batch].append(time.perf_counter() - began)


def _batch(samples: Sequence[np.ndarray], size: int) -> np.ndarray:
    """So many rows of the samples of which there are most."""
    largest = max(samples, key=len)
    return np.ascontiguousarray(np.resize(largest, (size, *largest.shape[1:])))


def _warm(run: Runner, samples: Sequence[np.ndarray]) -> None:
    for size in WARM:
        run(_batch(samples, size))


def _torch(outcome: Outcome, why: str) -> Choice:
    return Choice(Decision(TORCH, why), outcome)


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

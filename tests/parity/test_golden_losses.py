"""The losses of a fixed tiny run, step by step, as they were recorded: what no change may move unless it says why.

Each device has a file of its own under `golden/`; a device without one records it. To record anew, with the reason:
`pytest tests/parity/test_golden_losses.py --record-losses "AdamW is fused on CPUs too"`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import a_plan
from fixtures.parity import DEVICE, a_clip

from clipft_tasks.data.loader import TrainingData
from clipft_tasks.data.sampler import Sampler
from clipft_tasks.domains import Augment
from clipft_tasks.model import similarity
from clipft_tasks.model.fastpath import quicken
from clipft_tasks.objectives import make
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import checkpoints, loop
from clipft_tasks.train.schedule import sides

GOLDEN = Path(__file__).parent / "golden" / f"{DEVICE.type}.json"
STEPS = 20
CLASSES = ["red", "green", "blue", "gray"]
DISTILLED = {"objective.auxiliary": ["distillation=1>0.5"], "objective.options": {"distillation.features": 0.1}}

# Name of a run: the curve that it must follow, fields of the spec, and decisions of the plan.
RUNS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "info_nce": ("info_nce", {}, {}),
    "info_nce in parts": ("info_nce", {}, {"micro_batch": {32: 5}}),
    "info_nce, chunked attention, all blocks checkpointed": ("info_nce", {}, {"attention": "chunked", "checkpointing": "all"}),
    "info_nce in bf16": ("info_nce in bf16", {}, {"precision": "bf16"}),
    "info_nce in fp16": ("info_nce in fp16", {}, {"precision": "fp16"}),
    "sigmoid": ("sigmoid", {"objective.name": "sigmoid"}, {}),
    "hard negatives, hyperbolic, distilled": (
        "hard negatives, hyperbolic, distilled",
        {"objective.name": "hard_negative", "objective.similarity": "hyperbolic", **DISTILLED},
        {},
    ),
    "multi-positive, LoRA, averaged": (
        "multi-positive, LoRA, averaged",
        {"objective.name": "multi_positive", "train.lora_rank": 4, "train.ema": 0.9, "train.layer_decay": 0.8},
        {},
    ),
    "several sizes, heads first, held near the start": (
        "several sizes, heads first, held near the start",
        {"resolution.schedule": "multi_scale", "resolution.sizes": [40, 48], "train.head_first": 0.2, "train.l2_start": 10},
        {},
    ),
}
# Relative, of each loss. Two threads, or sums in another order (torch without AVX, oneDNN and MKL held to SSE4), moved no loss
# by more than 4e-6 in fp32, which is the rounding of the file, and 4e-3 in 16 bit. A learning rate of 0.1% more moves every curve
# in fp32 by 2e-4 or more.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "fp16": 1e-2}


class Squares:
    """Noisy squares of four colors, for a loader that asks for some of them."""

    def __init__(self, rows: int, side: int) -> None:
        random = np.random.default_rng(0)
        colors = random.integers(40, 216, (len(CLASSES), 3, 1, 1))
        noise = random.integers(-40, 40, (rows, 3, side, side))
        self.pixels = torch.from_numpy((colors[np.arange(rows) % len(CLASSES)] + noise).astype(np.uint8))

    def take(self, rows: np.ndarray, *, pinned: bool = False) -> torch.Tensor:
        return self.pixels[torch.from_numpy(rows)]


def losses(folder: Path, fields: dict[str, object], decided: dict[str, object]) -> list[float]:
    """The loss of each step."""
    spec = RunSpec.from_flat(
        {"domain": "general", "resolution.train": 32, "train.batch": 16, "train.epochs": 5, "train.learning_rate": 1e-3}
        | fields
    )
    clip, rows = a_clip(), 64
    if spec.train.lora_rank:  # as every model is that is loaded: updates go beside packed attention alone
        quicken(clip.model)
    clip.similarity = similarity.make(spec.objective.similarity, clip.embed_dim)
    captions = [f"a {color} square, number {i}" for i in range(4) for color in CLASSES]
    tokens, lengths = clip.token_table(captions)
    labels = np.arange(rows) % len(CLASSES)
    data = TrainingData(
        images=Squares(rows, 48),
        tokens=tokens,
        lengths=lengths,
        caption_ids=np.arange(rows) % len(captions),
        wordings=np.zeros((0, 0), int),
        keys=np.array([f"row {i}" for i in range(rows)]),
        new=torch.zeros(rows, dtype=torch.bool),
        sampler=Sampler(labels, spec.train.batch, spec.train.seed),
        how=Augment(crop_min=0.6, rotate90=True, brightness=0.1),
    )
    told: list[tuple[int, dict[str, float]]] = []
    work = loop.Work(
        clip=clip,
        objective=make(spec.objective, CLASSES),
        data=data,
        spec=spec.train,
        resolution=spec.resolution,
        plan=a_plan(sides(spec.resolution, 8), device=DEVICE.type, **decided),
        checkpoints=checkpoints.Checkpoints(folder, "golden"),
        log=told.extend,
    )
    loop.train(work)
    assert [step for step, _ in told] == list(range(STEPS))
    return [metrics["loss"] for _, metrics in told]


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict:
    """What was recorded on such a device; with `--record-losses`, what this session records there."""
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"losses": {}}
    if reason := request.config.getoption("--record-losses"):
        recorded |= {"reason": reason, "torch": torch.__version__}
    yield recorded
    if reason:
        recorded["losses"] = {curve: recorded["losses"][curve] for curve, *_ in RUNS.values() if curve in recorded["losses"]}
        GOLDEN.write_text(json.dumps(recorded, indent=1) + "\n")


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_recorded(name, golden, tmp_path, home, request):
    curve, fields, decided = RUNS[name]
    seen = losses(tmp_path, fields, decided)
    if request.config.getoption("--record-losses") and curve == name:
        golden["losses"][curve] = [float(f"{loss:.6g}") for loss in seen]
    if not golden["losses"]:
        pytest.skip(f"no losses were recorded on a {DEVICE.type} device yet: --record-losses REASON does it")
    expected = golden["losses"][curve]
    apart = [abs(a / b - 1) for a, b in zip(seen, expected, strict=True)]
    worst = int(np.argmax(apart))
    said = f"step {worst}: {seen[worst]:.6g}, recorded {expected[worst]:.6g} (torch {golden['torch']}, this is {torch.__version__})"
    assert max(apart) < TOLERANCE[str(decided.get("precision", "fp32"))], said

"""What a run takes from its start model where the spec leaves it open: sizes, learning rate, AdamW's second beta."""

import math
from dataclasses import dataclass

from ..core.decision import Decision
from ..core.errors import ClipftError
from ..model.clip import Clip
from ..model.image_tower import Convolutional, OpenClipResNet
from ..spec import RunSpec

Default = Decision[int] | Decision[float] | Decision[list[int]]

STARTER_SIDE = 128  # what the starter's defaults were measured at; its image tower was made for 224
LESS, MORE = 0.75, 1.25  # sides to evaluate at, as shares of the training size
SMALL = 60_000_000  # parameters of a whole model below which convolutions train as the starter does


@dataclass(frozen=True)
class Rates:
    """Learning rate and second beta of a kind of start model, and where they are from."""

    learning_rate: float
    beta2: float
    source: str


STARTER = Rates(2e-4, 0.999, "a small model of convolutions, as the starter, which this was measured on (docs/training.md)")
CONVOLUTIONS = Rates(
    5e-5,
    0.999,
    "a large model of convolutions: ConvNeXt's rate for fine-tuning (Liu et al. 2022, https://arxiv.org/abs/2201.03545)",
)
RESNET = Rates(
    1e-5, 0.999, "a ResNet of CLIP: the rate of FLYP (https://arxiv.org/abs/2212.00638), the betas of CLIP's own ResNets"
)
TRANSFORMER = Rates(
    1e-5,
    0.98,
    "a transformer: the rate of FLYP (Goyal et al. 2023, https://arxiv.org/abs/2212.00638), the beta of CLIP's own (Radford et al. "
    "2021, https://arxiv.org/abs/2103.00020)",
)
LOW_RANK = 2e-4  # CLIP-LoRA's rate: Zanella and Ben Ayed 2024, https://arxiv.org/abs/2405.18541


def settle(spec: RunSpec, clip: Clip) -> RunSpec:
    """The spec with what it leaves open decided, for a start model as it is loaded."""
    return spec.settled({name: decision.value for name, decision in decide(spec, clip).items()})


def decide(spec: RunSpec, clip: Clip) -> dict[str, Default]:
    """A value for each field that the spec leaves open, with its reason, by dotted name: what `RunSpec.settled` takes.

    Args:
        clip: the start model as it is loaded, not prepared for the run.
    """
    out: dict[str, Default] = {}
    multiple = spec.model.patch or clip.tower.multiple
    side = spec.resolution.train
    if side is None:
        side = STARTER_SIDE if clip.source == "starter" else max(multiple, round(clip.side / multiple) * multiple)
        whose = "what the starter's other defaults were measured at" if clip.source == "starter" else "the start model's own"
        out["resolution.train"] = Decision(side, whose)
    if not spec.resolution.evaluate:
        out["resolution.evaluate"] = _sizes(spec, clip, side, multiple)
    rates = _rates(clip)
    if spec.train.learning_rate is None:
        low_rank = spec.train.lora_rank > 0 and rates is not STARTER
        rate = (LOW_RANK if low_rank else rates.learning_rate) * spec.train.rate_factor
        reason = "low-rank updates: CLIP-LoRA's rate (https://arxiv.org/abs/2405.18541)" if low_rank else rates.source
        factor = f", times train.rate_factor = {spec.train.rate_factor:g}" if spec.train.rate_factor != 1 else ""
        out["train.learning_rate"] = Decision(rate, reason + factor)
    if spec.train.beta2 is None:
        out["train.beta2"] = Decision(rates.beta2, rates.source)
    return out


def _sizes(spec: RunSpec, clip: Clip, side: int, multiple: int) -> Decision[list[int]]:
    named = {rule.size for rule in spec.gate.rules if isinstance(rule.size, int)}
    around = {max(1, math.floor(side * LESS / multiple)) * multiple, math.ceil(side * MORE / multiple) * multiple}
    try:
        if not spec.model.patch:  # a tower whose patch is changed takes any multiple of it
            for size in around:
                clip.tower.at(size)
    except ClipftError as error:
        return Decision(sorted({side} | named), f"the model takes images of one size: {error.why}")
    return Decision(sorted({side} | around | named), "the training size, and a quarter less and more")


def _rates(clip: Clip) -> Rates:
    if isinstance(clip.tower, Convolutional):
        small = sum(parameter.numel() for parameter in clip.model.parameters()) <= SMALL
        return STARTER if small else CONVOLUTIONS
    return RESNET if isinstance(clip.tower, OpenClipResNet) else TRANSFORMER

"""What a run's values are for: said before it trains, where they are not for its start model or its data."""

from ..model.clip import Clip
from ..model.image_tower import OpenClipTransformer, TimmTransformer
from ..spec import RunSpec

FEW_STEPS = (
    60  # the demo's three epochs on 632 images are 27 steps of a small start model; below this, most are warm-up and fall
)
HIGH_RATE = 3e-5  # WiSE-FT's rate for CLIP's transformers is 3e-5, FLYP's 1e-5; both AdamW, all layers
FEW_TOKENS = 36  # an image as fewer patches than 6 x 6


def advice(spec: RunSpec, clip: Clip, steps: int) -> list[str]:
    """Warnings, a sentence each.

    Args:
        clip: the start model, prepared.
        steps: of the run.
    """
    out, train, side = [], spec.train, spec.resolution.side
    transformer = isinstance(clip.tower, OpenClipTransformer | TimmTransformer)
    if steps < FEW_STEPS:
        out.append(
            f"{steps} steps are few to move a model: {round(steps * train.warmup)} of them are warm-up. Raise train.epochs, or lower "
            "train.batch."
        )
    if transformer and train.peak_rate > HIGH_RATE and not train.lora_rank:
        out.append(
            f"train.learning_rate = {train.peak_rate:g} is for the starter. CLIP's transformers are fine-tuned at 1e-5 (FLYP, Goyal et "
            "al. 2023, https://arxiv.org/abs/2212.00638) to 3e-5 (WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903): more "
            "makes them forget what they know."
        )
    if transformer and clip.tower.tokens(side) < FEW_TOKENS:
        out.append(
            f"At resolution.train = {side} the image tower sees {side // clip.tower.multiple} x {side // clip.tower.multiple} patches: "
            "small things are lost. Start models of this kind were trained at 224 and more."
        )
    return out

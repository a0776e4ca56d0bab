"""Industrial: inspection pictures of parts, often grey, where small local defects decide."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="industrial",
    title="Industrial inspection",
    prompts=(
        "an inspection image of a {}.",
        "a close-up of a {}.",
        "an electroluminescence image of a {}.",
        "a picture of the {} taken for quality control.",
        "a grey-scale photo of a {}.",
        "a {} under the camera of a production line.",
    ),
    caption="an inspection image of a {}.",
    augment=Augment(crop_min=0.85, flip_vertical=True, rotate90=True),
    checks=Checks(min_side=64, min_class_share=0.02, modes=(*Checks().modes, "I;16", "I;16B")),
    defaults={
        "resolution.aspect": "pad",
        "objective.name": "multi_positive",
        "gate.rules": [
            "gain(score) >= 0",
            "gain(score) at every size >= -0.03",
            "gain(score) on new >= 0",
            "gain(score) on old >= -0.03",
        ],
    },
    why={
        "prompts": "views of one part in words of inspection, after WinCLIP's templates; the state (defective, cracked) is part of "
        "the class text (Jeong et al. 2023, https://arxiv.org/abs/2303.14814)",
        "augment.crop_min": "a defect may cover 1% of the part; a crop that loses it makes the caption wrong",
        "augment.flip_vertical": "a mirrored scratch is a scratch: defects have no laterality",
        "augment.rotate90": "a part has no up or down under the camera",
        "augment.brightness": "in electroluminescence, thermography and X-ray the brightness is the measurement (a dark cell is a "
        "broken cell): none is added or taken",
        "augment.contrast": "as brightness: a faint crack is faint for a reason",
        "checks.min_side": "below 64 pixels a small defect is less than a pixel at the model's size",
        "checks.min_class_share": "a class below 2% cannot be told from chance on a test split of some hundred parts",
        "checks.modes": "inspection cameras write 16-bit grey",
        "grey_bits": "one scale for all pictures keeps a dark part dark; stretching each would light it up. A camera that fills only "
        "12 or 14 of 16 bits: say so here in a domain of your own",
        "resolution.aspect": "a defect at the edge of a long part must stay in the picture, and its shape carries meaning",
        "objective.name": "many parts share one caption; those are positives, not each other's negatives",
        "objective.positives": "captions name defect and part; equal captions are equal findings, where a label may be coarser",
        "gate.rules": "lines differ in camera and picture size: a model that loses at one of them costs that line",
        "drift_tolerance": "a line's pictures differ little from batch to batch, so the limits stand as they are",
    },
)

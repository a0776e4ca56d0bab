"""Industrial: inspection images of parts, often gray, where small local defects decide."""

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
    augment=Augment(crop_min=0.85, flip_vertical=True, rotate90=True, prompt_share=0.5),
    checks=Checks(min_side=64, min_class_share=0.02, modes=(*Checks().modes, "I;16", "I;16B")),
    defaults={
        "resolution.aspect": "pad",
        "objective.name": "multi_positive",
        "objective.positives": "label",
        "objective.auxiliary": ["distillation=0.02"],
        "objective.options": {"distillation.features": 15},
        "train.layer_decay": 0.7,
        "train.keep": "last",
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
        "augment.prompt_share": "parts share a handful of captions, and classes are asked for by the prompts: training in their words "
        "(FLYP: Goyal et al. 2023, https://arxiv.org/abs/2212.00638) ties the class to the finding, not to one sentence",
        "augment.brightness": "in electroluminescence, thermography and X-ray the brightness is the measurement (a dark cell is a "
        "broken cell): none is added or taken",
        "augment.contrast": "as brightness: a faint crack is faint for a reason",
        "checks.min_side": "below 64 pixels a small defect is less than a pixel at the model's size",
        "checks.min_class_share": "a class below 2% cannot be told from chance on a test split of some hundred parts",
        "checks.modes": "inspection cameras write 16-bit gray",
        "gray_bits": "one scale for all images keeps a dark part dark; stretching each would light it up. A camera that fills only "
        "12 or 14 of 16 bits: say so here in a domain of your own",
        "resolution.aspect": "a defect at the edge of a long part must stay in the image, and its shape carries meaning",
        "objective.name": "many parts share one caption; those are positives, not each other's negatives",
        "objective.positives": "a class said in other words is the same finding, so no negative",
        "objective.auxiliary": "a few captions teach the text tower little and make it forget much: features stay near the start model's "
        "(docs/evaluation.md has the numbers with and without)",
        "objective.options": "held by features: the start model's own ranking of defects is not worth keeping",
        "train.layer_decay": "what defects look like is new, edges and textures are not: early blocks move less",
        "train.keep": "parts come in few groups (modules, lots), so validation rows tell epochs apart mostly by chance; the last one "
        "has seen the lowest rate",
        "gate.rules": "lines differ in camera and image size: a model that loses at one of them costs that line",
        "drift_tolerance": "a line's images differ little from batch to batch, so the limits stand as they are",
    },
)

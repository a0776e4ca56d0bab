"""Industrial: inspection pictures of parts, often grey, where small local defects decide."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="industrial",
    title="Industrial inspection",
    prompts=("an inspection image of a {}.", "a close-up of a {}.", "an electroluminescence image of a {}."),
    caption="an inspection image of a {}.",
    augment=Augment(crop_min=0.85, flip_vertical=True, rotate90=True, brightness=0.1, contrast=0.1),
    checks=Checks(min_side=64, min_class_share=0.02),
    defaults={
        "resolution.aspect": "pad",
        "objective.name": "multi_positive",
        "objective.positives": "caption",
        "train.epochs": 8,
    },
    why={
        "augment.crop_min": "a defect may cover 1% of the part; a crop that loses it makes the caption wrong",
        "augment.rotate90": "a part has no up or down under the camera",
        "augment.brightness": "brightness carries the signal (a dark cell is a broken cell), so it moves little",
        "resolution.aspect": "a defect at the edge of a long part must stay in the picture, and its shape carries meaning",
        "objective": "many parts share one caption; those are positives, not each other's negatives",
    },
)

"""Scientific: drawings, plots, micrographs, whose captions are names or sentences of their own."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="scientific",
    title="Scientific figures and micrographs",
    prompts=("a figure of {}.", "a scientific image of {}.", "a diagram showing {}."),
    caption="a scientific image of {}.",
    augment=Augment(crop_min=0.9, flip_horizontal=False),
    checks=Checks(modes=("RGB", "L", "RGBA", "P", "I;16"), min_class_share=0.0),
    defaults={"objective.name": "info_nce"},
    why={
        "augment.flip_horizontal": "a mirrored molecule or axis is another molecule or axis",
        "checks.min_class_share": "captions are often unique names, so a class may have one picture",
        "objective": "captions are nearly all different, so every other row is a true negative",
    },
)

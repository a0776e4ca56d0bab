"""General: everyday images, when no other domain fits."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="general",
    title="General images",
    prompts=(
        "a photo of a {}.",
        "a picture of a {}.",
        "an image showing a {}.",
        "a close view of a {}.",
        "a {} seen from further away.",
        "a drawing of a {}.",
    ),
    caption="a photo of a {}.",
    augment=Augment(crop_min=0.6, brightness=0.2, contrast=0.2),
    checks=Checks(modes=(*Checks().modes, "I;16", "I;16B")),
    why={
        "prompts": "plain sentences that differ in medium and distance: averaging such templates gained CLIP 3.5 points on ImageNet "
        "over one (Radford et al. 2021, section 3.1.4, https://arxiv.org/abs/2103.00020)",
        "augment.crop_min": "an everyday object fills much of its image and is recognized by a part",
        "augment.brightness": "everyday objects stay what they are when lit differently",
        "augment.contrast": "haze and cameras change contrast, never the object",
        "augment.flip_horizontal": "a mirrored object is the same object; text in an image is the exception, and rare",
        "augment.rotate90": "everyday images have an up, and a model may use it",
        "checks.modes": "cameras and scanners write 16-bit gray, and one scale for all images (gray_bits) reads it",
        "objective.name": "captions of everyday images nearly all differ: every other row is a true negative",
    },
)

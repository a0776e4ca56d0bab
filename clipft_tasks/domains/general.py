"""General: everyday pictures, when no other domain fits."""

from .base import Augment, Domain

DOMAIN = Domain(
    name="general",
    title="General pictures",
    prompts=("a photo of a {}.", "a picture of a {}.", "an image showing a {}."),
    caption="a photo of a {}.",
    augment=Augment(crop_min=0.6, brightness=0.2, contrast=0.2),
    why={"augment": "everyday objects stay what they are when mirrored, cropped or lit differently"},
)

"""Medical: radiographs, slides, scans. Laterality and intensity carry meaning."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="medical",
    title="Medical imaging",
    prompts=("a medical image showing {}.", "a scan with findings of {}.", "an image consistent with {}."),
    caption="a medical image showing {}.",
    augment=Augment(crop_min=0.85, flip_horizontal=False),
    checks=Checks(min_side=64, modes=("RGB", "L", "RGBA", "P", "I;16"), max_rejected_share=0.02, min_class_share=0.005),
    defaults={"resolution.aspect": "pad", "objective.name": "multi_positive", "objective.positives": "label"},
    why={
        "augment.flip_horizontal": "left and right are part of the finding",
        "augment.brightness": "stain and attenuation are measurements; jitter would invent pathology",
        "checks.max_rejected_share": "a missing study is more often a broken export than bad luck",
        "resolution.aspect": "a finding at the border must stay in the picture, undistorted",
        "objective": "two patients with one diagnosis are positives of each other",
    },
)

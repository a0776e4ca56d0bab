"""Medical: radiographs, slides, scans. Laterality and intensity carry meaning."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="medical",
    title="Medical imaging",
    prompts=(
        "{}.",
        "a medical image showing {}.",
        "a scan with findings of {}.",
        "an image consistent with {}.",
        "there is evidence of {}.",
        "findings are in keeping with {}.",
        "this is an image of {}.",
    ),
    caption="a medical image showing {}.",
    augment=Augment(crop_min=0.85, flip_horizontal=False),
    checks=Checks(
        min_side=64,
        modes=("RGB", "L", "RGBA", "P", "I;16", "I;16B"),
        max_rejected_share=0.02,
        min_class_share=0.005,
        identifiers=True,
    ),
    gray_bits=0,
    group_unit="patient",
    drift_tolerance=1.25,
    defaults={
        "resolution.aspect": "pad",
        "objective.name": "multi_positive",
        "objective.positives": "label",
        "gate.rules": [
            "gain(score) >= 0.005",
            "gain(score) at every size >= -0.02",
            "gain(score) on new >= 0.005",
            "gain(score) on old >= -0.01",
        ],
    },
    why={
        "prompts": "the bare finding, as CheXzero asks (Tiu et al. 2022, https://doi.org/10.1038/s41551-022-00936-9), and sentences "
        "as reports and figure captions word it, after BiomedCLIP (Zhang et al. 2023, https://arxiv.org/abs/2303.00915)",
        "augment.crop_min": "a finding may lie at the border of the field",
        "augment.flip_horizontal": "left and right are part of the finding",
        "augment.flip_vertical": "an upright chest shows fluid levels, a turned one does not",
        "augment.rotate90": "radiographs have an up. For slides, which have none, set it and both flips in a domain of your own",
        "augment.brightness": "stain and attenuation are measurements; jitter would invent pathology",
        "augment.contrast": "as brightness",
        "checks.min_side": "smaller than 64 pixels is a thumbnail from an export, not a study",
        "checks.modes": "radiographs are 16-bit gray; CMYK, 1-bit and gray with transparency come from documents, not devices",
        "checks.max_rejected_share": "a missing study is more often a broken export than bad luck",
        "checks.min_class_share": "rare diagnoses are what the model is for: half a percent is enough to be taken",
        "checks.identifiers": "reports hold dates, numbers and names of patients, and a version is for ever",
        "gray_bits": "detectors fill 10 to 14 of 16 bits and exposures differ, so each image spans its own range, as in MIMIC-CXR-JPG "
        "(Johnson et al. 2019, https://arxiv.org/abs/1901.07042); percentiles rather than least and most, since one burnt-in marker "
        "or dead pixel would else take the range",
        "group_unit": "a model recognizes a patient it has seen: images of one in train and test make every score too good",
        "drift_tolerance": "case mix changes with ward, day and season; limits a quarter wider keep alarms for devices and protocols",
        "resolution.aspect": "a finding at the border must stay in the image, undistorted",
        "objective.name": "two patients with one diagnosis are positives of each other",
        "objective.positives": "reports word one diagnosis in many ways; the label is what they share",
        "gate.rules": "every new version is validated by people: less than half a point is not worth their time; sites send "
        "different sizes, and none may pay for another; what was diagnosed yesterday must be diagnosed tomorrow",
    },
)

"""Scientific: drawings, plots, micrographs, whose captions are names or sentences of their own."""

from .base import Augment, Checks, Domain

DOMAIN = Domain(
    name="scientific",
    title="Scientific figures and micrographs",
    prompts=(
        "{}.",
        "a figure of {}.",
        "a scientific image of {}.",
        "a diagram showing {}.",
        "a structural drawing of {}.",
        "a micrograph of {}.",
    ),
    caption="a scientific image of {}.",
    augment=Augment(crop_min=0.9, flip_horizontal=False),
    checks=Checks(modes=("RGB", "L", "RGBA", "LA", "P", "1", "I;16", "I;16B", "I", "F"), min_class_share=0.0),
    gray_bits=0,
    drift_tolerance=1.5,
    defaults={
        "resolution.aspect": "pad",
        "objective.auxiliary": ["distillation=0.1"],
        "objective.options": {"distillation.features": 20},
        "train.rate_factor": 2.0,
        "train.epochs": 10,
        "train.sampling": "shuffled",
        "gate.metric": "image_to_text_r1",
    },
    why={
        "prompts": "the kind of image is named, as CLIP does for satellite photos and the like (Radford et al. 2021, section 3.1.4, "
        "https://arxiv.org/abs/2103.00020); and the bare name, since captions here often are just that",
        "augment.crop_min": "an axis label or the last atom of a chain lies at the edge, and without it the figure means another thing",
        "augment.flip_horizontal": "a mirrored molecule or axis is another molecule or axis",
        "augment.rotate90": "letters turn with the image: an N on its side is a Z. For micrographs, which have no up, set it in a "
        "domain of your own",
        "augment.brightness": "gray values and color scales are data, stains are measurements",
        "augment.contrast": "as brightness",
        "checks.modes": "microscopes write gray of 16 and 32 bits and in floating point, figures are often 1-bit or have a palette; CMYK is print",
        "checks.min_class_share": "captions are often unique names, so a class may have one image",
        "gray_bits": "exposure and gain differ from image to image, so each spans its own range; percentiles, since one hot pixel "
        "would else take it",
        "drift_tolerance": "every paper and every instrument has a look of its own: batches differ by nature",
        "resolution.aspect": "figures are wide and plots have axes at their edges: nothing may be cut off",
        "objective.name": "captions are nearly all different, so every other row is a true negative",
        "objective.auxiliary": "held near the start model's features, it may learn at a higher rate and for longer, and forgets next to "
        "nothing of everyday things (docs/evaluation.md)",
        "objective.options": "held by features: the start model ranks names of things that it never heard of by chance",
        "train.rate_factor": "drawings and names of a science are far from everyday images and words",
        "train.epochs": "each caption is seen once a pass, with no other that says the same, so it takes more of them",
        "train.sampling": "names are the task: a rare class is no reason to repeat one row and leave another out",
        "gate.metric": "captions are names: finding the right one is the task, classes are a coarse by-product",
    },
)

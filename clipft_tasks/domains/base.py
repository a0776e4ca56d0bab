"""What a domain is: one frozen profile that the rest of a run derives from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Self

from ..core.errors import ClipftError

# Each field says what it is in its annotation: `clipft domain new` writes that above the value.


def spoken(label: str) -> str:
    """A class as a sentence words it: `pleural_effusion` and `PleuralEffusion` as two words. The label itself stays."""
    return re.sub(r"(?<=[a-z]{3})(?=[A-Z][a-z]{2})", " ", label.replace("_", " "))


class Profile:
    """A group of choices that people write into files of their own."""

    RENAMED: ClassVar[Mapping[str, str]] = {}  # fields by the name of an earlier release

    def __new__(cls, *_: object, **given: object) -> Self:
        for old in cls.RENAMED.keys() & given.keys():
            new = cls.RENAMED[old]
            raise ClipftError(
                f"{cls.__name__}({old}=…)",
                f"the field is called `{new}` now",
                f"Write `{new}` instead.",
                code="domain.renamed_field",
            )
        return super().__new__(cls)


@dataclass(frozen=True)
class Augment(Profile):
    """What may be done to a training image without making its caption a lie."""

    RENAMED = {"reworded": "prompt_share"}

    crop_min: Annotated[float, "smallest share of the image's area that a random crop keeps; 1 never crops"] = 0.7
    flip_horizontal: Annotated[bool, "mirror left and right: only where laterality means nothing"] = True
    flip_vertical: Annotated[bool, "mirror top and bottom"] = False
    rotate90: Annotated[bool, "quarter turns: only where an image has no up"] = False
    brightness: Annotated[float, "gain is drawn from 1 ± this; 0 where intensity is a measurement"] = 0.0
    contrast: Annotated[float, "spread about the mean is drawn from 1 ± this"] = 0.0
    prompt_share: Annotated[
        float, "share of labeled rows whose caption is, for a step, one of the domain's prompts instead"
    ] = 0.0


@dataclass(frozen=True)
class Checks(Profile):
    """Limits that a data set must meet before it becomes a version."""

    min_side: Annotated[int, "pixels of the shorter side"] = 32
    max_side: Annotated[int, "pixels of the shorter side"] = 20_000
    modes: Annotated[tuple[str, ...], "color modes as Pillow names them"] = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1")
    max_rejected_share: Annotated[float, "of all rows"] = 0.05
    max_truncated_share: Annotated[float, "captions longer than the tokenizer's context"] = 0.05
    min_class_share: Annotated[float, "of the rarest class among the rows with a label"] = 0.01
    min_rows: Annotated[int, "rows after rejection"] = 20
    identifiers: Annotated[bool, "search captions and labels for dates, record numbers, addresses and names"] = False


# What test rows can be split by (evaluate/slices.py), and what may be wrong with an image (evaluate/corruptions.py).
SLICES = ("size", "mode", "format", "label", "group", "caption")
CORRUPTIONS = ("noise", "blur", "brightness", "contrast", "jpeg", "pixelate", "rotation")


@dataclass(frozen=True)
class Domain(Profile):
    """A profile: how images are treated, how classes are worded, and what counts as better."""

    RENAMED = {"grey_bits": "gray_bits", "captures": "capture_share", "retention": "general_set"}

    name: Annotated[str, "lower-case identifier; becomes a folder, a git tag prefix and part of a registry name"]
    title: Annotated[str, "as people call it"]
    prompts: Annotated[tuple[str, ...], "zero-shot templates, `{}` is the class; embeddings are averaged over them"]
    caption: Annotated[str, "template for rows that have a label but no caption"]
    augment: Augment = Augment()
    checks: Checks = Checks()
    gray_bits: Annotated[
        int, "gray deeper than 8 bits: white is 2**this - 1; 0: each image spans its own 0.1% to 99.9% percentile"
    ] = 16
    near_duplicate_bits: Annotated[int, "images whose 256-bit perceptual hashes differ by at most this share a split"] = 12
    group_unit: Annotated[str, "what a group of rows is (patient, part); a data set without groups is then warned of"] = ""
    drift_tolerance: Annotated[float, "factor on every drift limit; more where batches of traffic differ by nature"] = 1.0
    capture_share: Annotated[float, "share of requests that the server keeps for labeling; 0 keeps none"] = 0.0
    slices: Annotated[tuple[str, ...], "how test rows are split into parts that are looked at by themselves"] = ("size", "mode")
    corruptions: Annotated[tuple[str, ...], "what may be wrong with an image here and leaves its caption true"] = CORRUPTIONS
    general_set: Annotated[str, "what must not be forgotten: `everyday`, or a dataset version's test rows"] = "everyday"
    defaults: Annotated[Mapping[str, object], "fields of a run by dotted name, where they differ from the general default"] = (
        field(default_factory=dict)
    )
    why: Annotated[Mapping[str, str], "the reason for each choice, by field"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isidentifier()) or self.name != self.name.lower():
            raise ValueError(f"domain name {self.name!r}: use lower-case letters, digits and _")
        for prompt in (*self.prompts, self.caption):
            if prompt.count("{}") != 1:
                raise ValueError(f"domain {self.name}: template {prompt!r} needs exactly one {{}}")
        if self.gray_bits not in (0, *range(8, 17)):
            raise ValueError(f"domain {self.name}: gray_bits {self.gray_bits} is neither 0 nor 8 to 16")
        if unknown := set(self.corruptions) - set(CORRUPTIONS):
            raise ValueError(f"domain {self.name}: no corruption {', '.join(sorted(unknown))}; known: {', '.join(CORRUPTIONS)}")
        if unknown := set(self.slices) - set(SLICES):
            raise ValueError(f"domain {self.name}: no slice {', '.join(sorted(unknown))}; known: {', '.join(SLICES)}")

    def choices(self) -> dict[str, object]:
        """Every choice by dotted name that is not the general default: what `why` has to explain."""
        general = Domain(self.name, self.title, self.prompts, self.caption)
        parts = (("augment.", self.augment, general.augment), ("checks.", self.checks, general.checks), ("", self, general))
        out: dict[str, object] = {"prompts": self.prompts}
        for prefix, own, usual in parts:
            for name in (each.name for each in fields(own)):
                value = getattr(own, name)
                if name not in ("augment", "checks", "defaults", "why") and value != getattr(usual, name):
                    out[prefix + name] = value
        return out | dict(self.defaults)

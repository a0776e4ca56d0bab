"""What a domain is: one frozen profile that the rest of a run derives from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Augment:
    """What may be done to a training picture without making its caption a lie."""

    crop_min: float = 0.7  # smallest share of the picture's area that a random crop keeps
    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate90: bool = False
    brightness: float = 0.0  # gain is drawn from 1 ± this
    contrast: float = 0.0


@dataclass(frozen=True)
class Checks:
    """Limits that a data set must meet before it becomes a version."""

    min_side: int = 32
    max_side: int = 20_000
    modes: tuple[str, ...] = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1")
    max_rejected_share: float = 0.05
    max_truncated_share: float = 0.05  # captions longer than the tokenizer's context
    min_class_share: float = 0.01
    min_rows: int = 20


@dataclass(frozen=True)
class Domain:
    """A profile: how pictures are treated, how classes are worded, and what counts as better.

    Args:
        name: lower-case identifier; becomes a folder, a git tag prefix and part of a registry name.
        prompts: zero-shot templates with one `{}` for the class text; embeddings are averaged over them.
        caption: template for rows that have a label but no caption.
        defaults: `RunSpec` fields by dotted name, where this domain differs from the general default.
        why: the reason for each choice that a reader may want to question, by field.
    """

    name: str
    title: str
    prompts: tuple[str, ...]
    caption: str
    augment: Augment = Augment()
    checks: Checks = Checks()
    near_duplicate_bits: int = 6  # of a 256-bit perceptual hash
    drift_tolerance: float = 1.0  # factor on every drift limit; more where batches of traffic differ by nature
    captures: float = 0.0  # share of requests that the server keeps for labelling; 0 keeps none
    defaults: Mapping[str, Any] = field(default_factory=dict)
    why: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise ValueError(f"domain name {self.name!r}: use lower-case letters, digits and _")
        for prompt in (*self.prompts, self.caption):
            if prompt.count("{}") != 1:
                raise ValueError(f"domain {self.name}: template {prompt!r} needs exactly one {{}}")

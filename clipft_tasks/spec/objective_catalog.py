"""The objectives and similarities that ship: each one's name, where its class is, and what it is for. Loads no torch.

A new one is its file and an entry here. The spec's form, `clipft objective list`, `clipft_tasks.objectives`, the tables in
docs/objectives.md and the tests read this.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What ships under a name.

    Attributes:
        path: `module:Class`, imported when it is asked for.
        use: what your data looks like, or what you need.
        note: what to set with it, or how it compares; Markdown.
    """

    path: str
    use: str
    note: str = ""


def _objective(path: str, use: str, note: str = "") -> Entry:
    return Entry(f"clipft_tasks.objectives.{path}", use, note)


def _similarity(kind: str, note: str, use: str) -> Entry:
    return Entry(f"clipft_tasks.model.similarity:{kind}", use, note)


MAIN: Mapping[str, Entry] = {
    "info_nce": _objective("info_nce:InfoNCE", "captions nearly all different"),
    "multi_positive": _objective("multi_positive:MultiPositive", "many images share few captions, or a class each"),
    "sigmoid": _objective("sigmoid:Sigmoid", "small batches, or a SigLIP to start from"),
    "hard_negative": _objective("hard_negative:HardNegative", "fine-grained classes: most negatives are easy, a few decide"),
    "soft_target": _objective("soft_target:SoftTarget", "classes form a tree, or captions say nearly the same"),
    "guided": _objective("guided:Guided", "captions are noisy, and the start model knows the domain a bit"),
    "margin": _objective("margin:Margin", "only the order of results counts (retrieval)"),
}
# These make sense only in addition to one of the others.
AUXILIARY: Mapping[str, Entry] = {
    "cyclic": _objective("cyclic:Cyclic", "texts must be able to stand for their images"),
    "alignment": _objective("alignment:Alignment", "new images come from another device, site or season"),
    "distillation": _objective(
        "distillation:Distillation",
        "the old must not be forgotten",
        "with `distillation.features` of 10 to 20 (and `train.l2_start`, `train.layer_decay`)",
    ),
}
OBJECTIVES: Mapping[str, Entry] = {**MAIN, **AUXILIARY}
SIMILARITIES: Mapping[str, Entry] = {
    "cosine": _similarity("Cosine", "directions", "by default; every index and every other CLIP model does"),
    "dot": _similarity("Dot", "directions and lengths", "where a length may say how sure or how general something is"),
    "euclidean": _similarity("Euclidean", "positions", "for prototypes: a class is a point"),
    "hyperbolic": _similarity("Hyperbolic", "positions in the Lorentz model", "for trees: general texts near the origin"),
    "bilinear": _similarity(
        "Bilinear", "directions through a learned matrix", "where the towers disagree by more than a rotation"
    ),
}


def named(entries: Mapping[str, Entry]) -> str:
    """Their names as a description lists them."""
    return ", ".join(f"`{name}`" for name in entries)


def tables() -> list[str]:
    """Markdown, for docs/objectives.md: which objective is for which data, and what each similarity compares."""
    parts = [
        [f"| your data or your need | `{field}` |", "|---|---|"]
        + [f"| {e.use} | `{name}`{', ' + e.note if e.note else ''} |" for name, e in entries.items()]
        for field, entries in (("objective.name", MAIN), ("objective.auxiliary", AUXILIARY))
    ]
    similar = ["| `objective.similarity` | compares | use it |", "|---|---|---|"]
    parts.append(similar + [f"| `{name}` | {e.note} | {e.use} |" for name, e in SIMILARITIES.items()])
    return ["\n".join(rows) for rows in parts]

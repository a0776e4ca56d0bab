"""The menu of objectives.

| your data looks like this                                        | use                                     |
|------------------------------------------------------------------|-----------------------------------------|
| captions nearly all different                                    | info_nce                                |
| many images share few captions, or a class each                | multi_positive                          |
| small batches, or a SigLIP to start from                         | sigmoid                                 |
| fine-grained classes: most negatives are easy, a few decide      | hard_negative                           |
| classes form a tree, or captions say nearly the same             | soft_target                             |
| captions are noisy, and the start model knows the domain a bit   | guided                                  |
| only the order of results counts (retrieval)                     | margin                                  |

| and beside it (`objective.also`)                                 |                                         |
|------------------------------------------------------------------|-----------------------------------------|
| the old must not be forgotten                                    | distillation (and `train.l2_start`)     |
| new images come from another device, site or season            | alignment                               |
| texts must be able to stand for their images                   | cyclic                                  |
| embeddings are to be cut to save space                           | `objective.dimensions`                  |

One of your own: `objective.name: my_package.losses:MyLoss`, a subclass of `Objective`; or an entry point of the group
`clipft.objectives`. `clipft objective check my_package.losses:MyLoss` says whether it keeps what training promises.
"""

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ClipftError
from ..core.plugins import classes
from ..model import similarity
from ..spec import ObjectiveSpec
from ..spec.ranges import Range
from .alignment import Alignment
from .base import Objective, Pairs
from .cyclic import Cyclic
from .distillation import Distillation
from .guided import Guided
from .hard_negative import HardNegative
from .info_nce import InfoNCE
from .margin import Margin
from .multi_positive import MultiPositive
from .sigmoid import Sigmoid
from .soft_target import SoftTarget
from .weighted import Weight, Weighted

__all__ = [
    "MENU", "Alignment", "Cyclic", "Distillation", "Guided", "HardNegative", "InfoNCE", "Margin", "MultiPositive", "Objective",
    "Pairs", "Range", "Sigmoid", "SoftTarget", "code_of", "kind_of", "make", "one",
]  # fmt: skip

MENU: dict[str, type[Objective]] = {
    "info_nce": InfoNCE,
    "multi_positive": MultiPositive,
    "sigmoid": Sigmoid,
    "hard_negative": HardNegative,
    "soft_target": SoftTarget,
    "guided": Guided,
    "margin": Margin,
    "cyclic": Cyclic,
    "alignment": Alignment,
    "distillation": Distillation,
}
REGISTRY = classes("objective", Objective, MENU)  # type: ignore[type-abstract]  # only subclasses are made


def kind_of(name: str) -> type[Objective]:
    """The class of an objective. Raises ClipftError with the names there are."""
    return REGISTRY.load(name)


def make(spec: ObjectiveSpec, classes: Sequence[str] = ()) -> Objective:
    """The objective that a spec describes.

    Args:
        classes: which class each label id stands for.
    Raises: ClipftError for a name that is not on the menu, an option that the objective does not have or does not take, or an
        objective that teaches nothing without another.
    """
    if kind_of(spec.name).beside:
        fix = f'Set objective.name to another, and objective.also to ["{spec.name}=1"].'
        raise ClipftError(f"objective {spec.name}", "alone it teaches nothing", fix)
    added = dict(_term(text) for text in spec.also)
    main: dict[str, Any] = {}
    of_others: dict[str, dict[str, Any]] = {name: {} for name in added}
    for option, value in spec.options.items():
        term, dot, leaf = option.rpartition(".")
        if not dot:
            main[leaf] = value
        elif term not in added:
            raise ClipftError(
                f"objective.options {option!r}", f"{term!r} is not in objective.also", "Add it there, or drop this."
            )
        elif leaf == "weight":
            added[term] = _term(f"{term}={value}")[1]
        else:
            of_others[term][leaf] = value
    objective = one(spec, spec.name, main)
    others = [
        (name.replace(":", "_").replace(".", "_"), one(spec, name, of_others[name]), weight) for name, weight in added.items()
    ]
    if others or spec.dimensions:
        objective = Weighted(objective, others, spec.dimensions)
    objective.prepare(classes)
    return objective


def one(spec: ObjectiveSpec, name: str, options: Mapping[str, Any]) -> Objective:
    """A single objective by name, with its options and with what the spec says to all of them."""
    kind = kind_of(name)
    known = inspect.signature(kind).parameters
    shared = {"positives": spec.positives, "smoothing": spec.label_smoothing}
    given = {k: v for k, v in shared.items() if k in known} | dict(options)
    if unknown := options.keys() - known.keys():
        has = ", ".join(k for k in known if k not in shared) or "none"
        raise ClipftError(f"objective.options of {name}", f"it has no option {', '.join(sorted(unknown))}", f"Known: {has}.")
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ClipftError(f"objective.options of {name}", str(error), "See the objective's description.") from error


def code_of(spec: ObjectiveSpec) -> dict[str, str]:
    """A digest of the source file of each objective and similarity that does not ship with clipft, by name.

    It is part of what a run is known by: an edited loss is another piece of work.
    """
    kinds: dict[str, type] = {name: kind_of(name) for name in (spec.name, *(_term(text)[0] for text in spec.also))}
    kinds[spec.similarity] = similarity.REGISTRY.load(spec.similarity)
    out = {}
    for name, kind in kinds.items():
        if not kind.__module__.startswith("clipft_tasks."):
            path = inspect.getsourcefile(kind)
            out[name] = hashlib.sha256(Path(path).read_bytes() if path else b"").hexdigest()[:16]
    return out


def _term(text: str) -> tuple[str, Weight]:
    """`name=weight` or `name=from>to`."""
    name, equals, weight = text.partition("=")
    first, _, last = weight.partition(">")
    try:
        return name.strip(), Weight(float(first), float(last or first)) if equals else Weight(1.0, 1.0)
    except ValueError:
        raise ClipftError(f"objective.also {text!r}", "its weight is not a number", "Write name=0.5, or name=0>0.5.") from None

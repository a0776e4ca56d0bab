"""The menu of objectives.

| your data looks like this                          | use            |
|----------------------------------------------------|----------------|
| captions nearly all different                      | info_nce       |
| many pictures share few captions, or a class each  | multi_positive |

One of your own: `objective.name: my_package.losses:MyLoss`, a subclass of `Objective`; or an entry point of the group
`clipft.objectives`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import ClipftError
from ..named import find
from ..spec import ObjectiveSpec
from .base import Objective, Pairs
from .info_nce import InfoNCE
from .multi_positive import MultiPositive
from .weighted import Weight, Weighted

__all__ = ["MENU", "InfoNCE", "MultiPositive", "Objective", "Pairs", "kind_of", "make"]

MENU: dict[str, type[Objective]] = {"info_nce": InfoNCE, "multi_positive": MultiPositive}


def kind_of(name: str) -> type[Objective]:
    """The class of an objective. Raises ClipftError with the names there are."""
    return find("objective", name, MENU, Objective)  # type: ignore[no-any-return]


def make(spec: ObjectiveSpec) -> Objective:
    """The objective that a spec describes.

    Raises: ClipftError for a name that is not on the menu, an option that the objective does not have or does not take.
    """
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
            added[term] = Weight(float(value), float(value))
        else:
            of_others[term][leaf] = value
    objective = _made(spec, spec.name, main)
    if not added and not spec.dimensions:
        return objective
    others = [
        (name.replace(":", "_").replace(".", "_"), _made(spec, name, of_others[name]), weight) for name, weight in added.items()
    ]
    return Weighted(objective, others, spec.dimensions)


def _made(spec: ObjectiveSpec, name: str, options: Mapping[str, Any]) -> Objective:
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


def _term(text: str) -> tuple[str, Weight]:
    """`name=weight` or `name=from>to`."""
    name, equals, weight = text.partition("=")
    first, _, last = weight.partition(">")
    try:
        return name.strip(), Weight(float(first), float(last or first)) if equals else Weight(1.0, 1.0)
    except ValueError:
        raise ClipftError(f"objective.also {text!r}", "its weight is not a number", "Write name=0.5, or name=0>0.5.") from None

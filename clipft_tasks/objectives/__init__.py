"""The menu of objectives.

| your data looks like this                          | use            |
|----------------------------------------------------|----------------|
| captions nearly all different                      | info_nce       |
| many pictures share few captions, or a class each  | multi_positive |

One of your own: `objective.name: my_package.losses:MyLoss`, a subclass of `Objective`; or an entry point of the group
`clipft.objectives`.
"""

import importlib
from importlib.metadata import entry_points
from typing import Any

from ..errors import ClipftError
from ..spec import ObjectiveSpec
from .base import Objective
from .info_nce import InfoNCE
from .multi_positive import MultiPositive

__all__ = ["InfoNCE", "MultiPositive", "Objective", "make"]

MENU: dict[str, type[Objective]] = {"info_nce": InfoNCE, "multi_positive": MultiPositive}


def make(spec: ObjectiveSpec) -> Objective:
    """The objective that a spec names. Raises ClipftError with the names there are."""
    kind: Any = MENU.get(spec.name)
    if kind is None:
        entry = next(iter(entry_points(group="clipft.objectives", name=spec.name)), None)
        if entry is not None:
            kind = entry.load()
        elif ":" in spec.name:
            module, _, name = spec.name.partition(":")
            try:
                kind = getattr(importlib.import_module(module), name)
            except (ImportError, AttributeError) as error:
                raise ClipftError(f"objective {spec.name!r}", str(error), "Is the package installed?") from error
        else:
            raise ClipftError(
                f"objective {spec.name!r}", "there is none of that name", f"Known: {', '.join(MENU)}, or module:Class."
            )
    if not (isinstance(kind, type) and issubclass(kind, Objective)):
        raise ClipftError(f"objective {spec.name!r}", "it is not a subclass of clipft_tasks.objectives.Objective")
    return kind(positives=spec.positives, smoothing=spec.label_smoothing)

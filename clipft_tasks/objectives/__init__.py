"""Objectives: what training minimizes, one a file.

Which there are, and which is for which data, is in `clipft_tasks.spec.objective_catalog`, in docs/objectives.md and in
`clipft objective list`. Their classes are imported when they are asked for: `from clipft_tasks.objectives import InfoNCE`.

One of your own: `objective.name: my_package.losses:MyLoss`, a subclass of `Objective`; or an entry point of the group
`clipft.objectives`. `clipft objective check my_package.losses:MyLoss` says whether it keeps what training promises.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from ..core.errors import ClipftError
from ..core.plugins import classes, source_digest
from ..model import similarity
from ..spec import ObjectiveSpec
from ..spec.auxiliary import Options
from ..spec.objective_catalog import OBJECTIVES
from ..spec.ranges import Range
from .base import Objective, Pairs

_NAMES = {entry.path.partition(":")[2]: name for name, entry in OBJECTIVES.items()}  # by class

__all__ = ["Objective", "Pairs", "Range", "source_digests", "objective_class", "make", "make_single", *_NAMES]

REGISTRY = classes("objective", Objective, {name: entry.path for name, entry in OBJECTIVES.items()})  # type: ignore[type-abstract]  # only subclasses are made


def __getattr__(name: str) -> Any:  # a class, which a type checker cannot know from the catalog
    if name in _NAMES:
        return objective_class(_NAMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def objective_class(name: str) -> type[Objective]:
    """The class of an objective. Raises ClipftError with the names there are."""
    return REGISTRY.load(name)


def make(spec: ObjectiveSpec, classes: Sequence[str] = ()) -> Objective:
    """The objective that a spec describes.

    Args:
        classes: which class each label id stands for.
    Raises: ClipftError for a name that is not in the catalog, an option that the objective does not have or does not take, or
        an objective that teaches nothing without another.
    """
    if objective_class(spec.name).auxiliary_only:
        fix = f'Set objective.name to another, and objective.auxiliary to ["{spec.name}=1"].'
        raise ClipftError(f"objective {spec.name}", "alone it teaches nothing", fix, code="objective.auxiliary_alone")
    if spec.label_smoothing and "smoothing" not in inspect.signature(objective_class(spec.name)).parameters:
        raise ClipftError(
            f"objective.label_smoothing = {spec.label_smoothing:g}",
            f"the objective {spec.name} does not take it",
            "Set it to 0, or choose an objective that does, such as info_nce or multi_positive.",
            code="objective.unknown_option",
        )
    objective = make_single(spec, spec.name, spec.main_options)
    others = [(loss, make_single(spec, loss.name, loss.options)) for loss in spec.auxiliary_losses]
    if others or spec.dimensions:
        from .weighted import Weighted

        objective = Weighted(objective, others, spec.dimensions)
    objective.prepare(classes)
    return objective


def make_single(spec: ObjectiveSpec, name: str, options: Options) -> Objective:
    """A single objective by name, with its options and with what the spec says to all of them."""
    kind = objective_class(name)
    known = inspect.signature(kind).parameters
    shared = {"positives": spec.positives, "smoothing": spec.label_smoothing}
    given = {k: v for k, v in shared.items() if k in known} | dict(options)
    if unknown := options.keys() - known.keys():
        has = ", ".join(k for k in known if k not in shared) or "none"
        raise ClipftError(
            f"objective.options of {name}",
            f"it has no option {', '.join(sorted(unknown))}",
            f"Known: {has}.",
            code="objective.unknown_option",
        )
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise ClipftError(
            f"objective.options of {name}", str(error), "See the objective's description.", code="objective.invalid_option"
        ) from error


def source_digests(spec: ObjectiveSpec) -> dict[str, str]:
    """A digest of the source file of each objective and similarity that does not ship with clipft, by name.

    It is part of what a run is known by: an edited loss is another piece of work.
    """
    kinds: dict[str, type] = {
        name: objective_class(name) for name in (spec.name, *(loss.name for loss in spec.auxiliary_losses))
    }
    kinds[spec.similarity] = similarity.REGISTRY.load(spec.similarity)

    return {name: source_digest(kind) for name, kind in kinds.items() if not kind.__module__.startswith("clipft_tasks.")}

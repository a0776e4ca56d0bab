"""What every objective must keep, as checks: `clipft objective check` and the test-suite run the same ones."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..core.errors import ClipftError
from ..spec import ObjectiveSpec
from ..spec.objective_catalog import SIMILARITIES
from .feature_checks import FailedCheckError, Subject, finite, form, gradients, in_blocks, operators
from .step_checks import in_parts, in_processes, process_cases, two_processes

__all__ = ["ALL", "CHECKS", "Finding", "Subject", "checked"]


@dataclass(frozen=True)
class Finding:
    """What a check found: "" when it was passed, else the reason."""

    check: str
    similarity: str
    problem: str


CHECKS: dict[str, Callable[[Subject], None]] = {
    "form": form,
    "finite": finite,
    "gradient": gradients,
    "blocks": in_blocks,
    "parts": in_parts,
    "operators": operators,
}
ALL = (*CHECKS, "processes")


def checked(
    objective: ObjectiveSpec, names: Iterable[str] = tuple(SIMILARITIES), skip: Iterable[str] = ()
) -> Iterator[Finding]:
    """Run all checks on an objective, under each similarity; none but the first where already its form is wrong.

    Args:
        skip: names of checks to leave out.
    """
    subjects = [Subject(objective.model_copy(update={"similarity": name})) for name in names]
    for name, check in CHECKS.items():
        if name not in skip:
            found = [Finding(name, s.objective.similarity, _problem(partial(check, s))) for s in subjects]
            yield from found
            if name == "form" and any(f.problem for f in found):
                return
    if "processes" not in skip:
        shared = two_processes([case for subject in subjects for case in process_cases(subject)])
        for subject in subjects:
            its = [(case, gradients) for case, gradients in shared if case.objective == subject.objective]
            yield Finding("processes", subject.objective.similarity, _problem(partial(in_processes, its)))


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except (FailedCheckError, ClipftError) as failed:
        return str(failed)
    except Exception as error:  # an objective of somebody else may raise anything
        at = error.__traceback__
        while at and at.tb_next:
            at = at.tb_next
        where = f" ({Path(at.tb_frame.f_code.co_filename).name}, line {at.tb_lineno})" if at else ""
        return f"{type(error).__name__}: {error}{where}"
    return ""

"""The one exception that a person is meant to read."""

from datetime import UTC, datetime

__all__ = ["BusyError", "ClipftError", "TransientError"]


class ClipftError(Exception):
    """Something a person can mend.

    Args:
        what: the thing that is wrong, by name ("row 17 of images.csv").
        why: the reason, in one clause.
        fix: what to do about it.
        code: which error it is, for programs and tests ("dataset.not_found"): an area and a name, never reworded. docs/errors.md
            lists them.

    Trying again without changing anything will not help, so Airflow fails the task without retries
    and the CLI prints the sentence instead of a traceback.
    """

    def __init__(self, what: str, why: str, fix: str = "", *, code: str) -> None:
        self.what, self.why, self.fix, self.code = what, why, fix, code
        super().__init__(f"{what}: {why}." + (f" {fix}" if fix else ""))

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, vars(self))  # across processes

    @property
    def line(self) -> str:
        """The sentence and its code, as the CLI and a task's log show it."""
        return f"{self} [{self.code}]"


class TransientError(Exception):
    """Another service is away (server, registry, remote): worth trying again."""

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, vars(self))


class BusyError(TransientError):
    """Another changes the same thing just now.

    Args:
        what: the thing. holder: who changes it. until: when that ends at the latest (seconds since 1970).
    """

    def __init__(self, what: str, holder: str, until: float) -> None:
        self.what, self.holder, self.until = what, holder, until
        at = datetime.fromtimestamp(until, UTC)
        super().__init__(f"{what} is being changed by {holder}, until {at:%H:%M:%S} UTC at the latest.")


def _again(kind: type[Exception], args: tuple[object, ...], state: dict[str, object]) -> Exception:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(state)
    return error

"""The one exception that a person is meant to read."""

__all__ = ["ClipftError", "Transient"]


class ClipftError(Exception):
    """Something a person can mend.

    Args:
        what: the thing that is wrong, by name ("row 17 of images.csv").
        why: the reason, in one clause.
        fix: what to do about it.
        code: which error it is, for programs and tests ("dataset.not_found"): a room and a name, never reworded. docs/errors.md
            lists them.

    Trying again without changing anything will not help, so Airflow fails the task without retries
    and the CLI prints the sentence instead of a traceback.
    """

    def __init__(self, what: str, why: str, fix: str = "", *, code: str) -> None:
        self.what, self.why, self.fix, self.code = what, why, fix, code
        super().__init__(f"{what}: {why}." + (f" {fix}" if fix else ""))

    @property
    def line(self) -> str:
        """The sentence and its code, as the CLI and a task's log show it."""
        return f"{self} [{self.code}]"


class Transient(Exception):
    """A neighbor is away (server, registry, remote): worth trying again."""

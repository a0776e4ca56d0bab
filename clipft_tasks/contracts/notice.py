"""What people are told, as a generic webhook receives it."""

from typing import ClassVar, Literal

from .base import VersionedRecord

Event = Literal["approval_wanted", "approval_lapses", "run_failed", "run_late", "drift", "breaker_open"]


class Notice(VersionedRecord):
    """Something that happened, for people who are elsewhere.

    Attributes:
        title: in one line. text: plain, a few lines. domain: "" where it is about none. link: to the page that says more; "" for none.
    """

    FORMAT: ClassVar[int] = 1
    WHAT: ClassVar[str] = "the notice"

    event: Event
    title: str
    text: str = ""
    domain: str = ""
    link: str = ""

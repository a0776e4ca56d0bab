"""Who may do what: rules of routes, and callers (`keys` knows them). Both are looked at before a body is read (`middleware`)."""

from dataclasses import dataclass
from enum import StrEnum

from fastapi import Depends, Request

INTERNAL = "x-clipft-internal"


class Scope(StrEnum):
    """What a key may open."""

    INFER = "infer"
    FEEDBACK = "feedback"
    OPERATE = "operate"


class Holds(StrEnum):
    """What a body holds, and so how large it may be."""

    SETTINGS = "settings"
    TEXTS = "texts"
    IMAGES = "images"


ALL = frozenset(Scope)


@dataclass(frozen=True)
class Rule:
    """What a route asks of its caller. A route carries it among its dependencies, where it does nothing.

    Attributes:
        scope: that the caller needs; None: the route is for everybody.
        body: what a body holds at most.
        streams: the route reads its body itself, piece by piece; a length need not be said.
        is_inference: the work may be taken back: it ends when its client hangs up, and has a deadline.
        is_health: whether the server is well: who asks this does not count as one who asks something.
        weight: as how many requests one counts where requests a second are counted.
    """

    scope: Scope | None
    body: Holds = Holds.SETTINGS
    streams: bool = False
    is_inference: bool = False
    is_health: bool = False
    weight: int = 1

    async def __call__(self) -> None:
        """Nothing: the rule was kept before."""


PUBLIC = [Depends(Rule(None))]
HEALTH = [Depends(Rule(None, is_health=True))]
METRICS = [Depends(Rule(None, is_health=True, weight=10))]
INFER = [Depends(Rule(Scope.INFER, body=Holds.IMAGES, is_inference=True))]
INFER_TEXTS = [Depends(Rule(Scope.INFER, body=Holds.TEXTS, is_inference=True))]
FEEDBACK = [Depends(Rule(Scope.FEEDBACK))]
OPERATE = [Depends(Rule(Scope.OPERATE))]
STRICTEST = Rule(Scope.OPERATE)


def rule_of(route: object, method: str) -> Rule:
    """The rule of a route that was matched. One that names none is for everybody to read, and closed for the rest."""
    named = (depends.dependency for depends in getattr(route, "dependencies", ()))
    reads = Rule(None) if method in ("GET", "HEAD", "OPTIONS") else STRICTEST
    return next((found for found in named if isinstance(found, Rule)), reads)


@dataclass(frozen=True)
class Caller:
    """Who asks: nobody in particular, or who showed a key."""

    name: str = ""
    scopes: frozenset[Scope] = frozenset()

    def may(self, scope: Scope | None) -> bool:
        return scope is None or scope in self.scopes


def caller_of(request: Request) -> Caller:
    """Who asks this."""
    caller: Caller = request.state.caller
    return caller


def is_internal(request: Request) -> bool:
    """Whether the pipeline itself is asking: what it asks is no traffic, so it is neither watched nor kept.

    The header alone says nothing: otherwise any caller could stay out of the windows.
    """
    return INTERNAL in request.headers and caller_of(request).may(Scope.OPERATE)

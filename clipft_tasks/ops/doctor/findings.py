"""What a check says, and how it asks a service."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from ...core.errors import TransientError
from ..installation import log_command, start_command

ANSWER = 4.0  # seconds in which a service answers
OK, WRONG, LOOK, NONE = "ok", "wrong", "look", "none"

Outcome = tuple[str, str] | tuple[str, str, str]  # state, said, fix
Check = tuple[str, str, Callable[[], Outcome]]  # thing, address, what is asked


@dataclass(frozen=True)
class Finding:
    """What a check says.

    Attributes:
        state: ok, wrong, look (works, and a person should know), none (this installation has no such thing).
        said: what it found.
        fix: the way out, when something is wrong.
    """

    thing: str
    address: str
    state: str
    said: str
    fix: str = ""


class DependencyDownError(Exception):
    """Another check says what is wrong."""


@contextmanager
def depends_on(service: str) -> Iterator[None]:
    """What is asked of a service that does not answer is not known, and is no second fault."""
    try:
        yield
    except TransientError:
        raise DependencyDownError(f"not known while {service} does not answer") from None


def get(address: str, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """What a service answers. Raises TransientError when it does not answer well, or in time."""
    try:
        answer = httpx.get(address.rstrip("/") + path, timeout=ANSWER, headers=headers)
    except httpx.HTTPError as error:
        why = "no answer" if isinstance(error, httpx.TimeoutException) else str(error) or repr(error)
        raise TransientError(f"it does not answer ({why})") from None
    if answer.is_error:
        raise TransientError(f"it answered {answer.status_code} to {path}")
    return answer


def json_of(answer: httpx.Response) -> Any:  # its shape is the service's
    """What it says. Raises TransientError when that is no JSON."""
    try:
        return answer.json()
    except ValueError:
        raise TransientError("something else answers at this address") from None


def start_hint(thing: str) -> str:
    service = {"Airflow": "airflow-api", "DAGs": "airflow-dag-processor", "Models": "server", "Clock": "airflow-api"}
    name = service.get(thing, thing.split(",")[0].lower())
    return f"{start_command()}; if it does not stay up: {log_command('postgres' if name == 'tables' else name)}"


def without_credentials(address: str) -> str:
    """Without what stands between `//` and `@`."""
    return re.sub(r"//[^/@]*@", "//", address.removeprefix("sqlite:///"))

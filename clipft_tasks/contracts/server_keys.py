"""Keys of the inference server's clients: what each may do, and how often. The keys themselves are kept nowhere."""

import hashlib
from typing import ClassVar, Literal

from pydantic import Field

from .base import Record, VersionedRecord

Scope = Literal["infer", "feedback", "operate"]


class ServerKey(Record):
    """One client's key."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = ("infer",)
    requests_per_minute: float = Field(0, ge=0)  # 0: as many as the server answers
    until: float | None = None  # seconds since 1970; None: until it is removed


class ServerKeys(VersionedRecord):
    """The file `server-keys.json` of an installation."""

    WHAT: ClassVar[str] = "the list of keys"

    keys: tuple[ServerKey, ...] = ()


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()

"""Several servers that answer as one: what changes something, or is not known here, is relayed to the other replicas.

Relayed once (a header says so), with the caller's own token. A replica that does not answer holds nothing up: it reads the
registry when it is back.
"""

import socket
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import httpx
from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from clipft_tasks.contracts.base import Record
from clipft_tasks.core.errors import ClipftError, TransientError

T = TypeVar("T")
RELAYED, REPLICA_ID = "x-clipft-relayed", "x-clipft-replica"


@dataclass(frozen=True)
class Reply:
    """What one replica answered: `response` None, and the reason in `unreachable`, where it did not."""

    address: str
    id: str
    response: httpx.Response | None
    unreachable: str = ""

    @property
    def refusal(self) -> str:
        """Why it refused (4xx); "" when it did not."""
        if self.response is None or not 400 <= self.response.status_code < 500:
            return ""
        return str(self.response.json().get("detail", self.response.text))

    def read(self, what: type[T]) -> T | None:
        """Its answer; None where there is none, or none that this release understands."""
        if self.response is None or not self.response.is_success:
            return None
        try:
            return TypeAdapter(what).validate_json(self.response.content)
        except ValidationError:
            return None


class Replicas:
    """The other replicas of one server.

    Args:
        names: `host:port`, several separated by commas; a name that has an address for every replica stands for all. Empty: none.
    """

    def __init__(self, names: str) -> None:
        self.names = [name for name in names.replace(",", " ").split() if name]
        self.id = uuid.uuid4().hex[:12]

    def addresses(self) -> list[str]:
        """Where replicas are now, this one perhaps among them: `http://address:port`."""
        found = set()
        for name in self.names:
            host, _, port = name.rpartition(":")
            try:
                known = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except OSError:
                continue
            for family, _, _, _, address in known:
                place = str(address[0])
                found.add(f"http://{f'[{place}]' if family == socket.AF_INET6 else place}:{port}")
        return sorted(found)

    def send_all(self, method: str, path: str, authorization: str, body: Record | None = None) -> list[Reply]:
        """Send every other replica the same request at once. This one, and one that has two addresses, count once."""
        addresses = self.addresses()
        if not addresses:
            return []
        headers = {RELAYED: self.id} | ({"authorization": authorization} if authorization else {})
        json = body.to_json() if body else None

        def send(address: str) -> Reply:
            limits = httpx.Timeout(10 if method == "GET" else 300, connect=2)  # a version that is loaded takes its time
            try:
                response = httpx.request(method, address + path, json=json, headers=headers, timeout=limits, trust_env=False)
            except httpx.HTTPError as error:
                return Reply(address, "", None, repr(error))
            return Reply(address, response.headers.get(REPLICA_ID, ""), response)

        with ThreadPoolExecutor(len(addresses)) as pool:
            replies = list(pool.map(send, addresses))
        seen, others = {self.id}, []
        for reply in replies:
            if reply.response is None or reply.id not in seen:
                others.append(reply)
                seen.add(reply.id)
        return others


@dataclass(frozen=True)
class Relay:
    """A request, to be sent on to the other replicas, unless one of them sent it here."""

    replicas: Replicas
    request: Request

    @property
    def is_relayed(self) -> bool:
        """Whether another replica sent it."""
        return RELAYED in self.request.headers

    def broadcast(self, body: Record | None = None, path: str = "") -> list[Reply]:
        """Send it on with `body`; what each other replica that answers says.

        Args:
            path: another one than the request's own.
        """
        if self.is_relayed:
            return []
        own = (self.request.scope.get("raw_path") or self.request.url.path.encode()).decode()
        return self.replicas.send_all(self.request.method, path or own, self.request.headers.get("authorization", ""), body)

    def fetch_all(self, what: type[T]) -> list[T]:
        """Send it on; the answers of those that have one."""
        return [found for reply in self.broadcast() if (found := reply.read(what)) is not None]

    def fetch_first(self, what: type[T], body: Record | None = None) -> T | None:
        """Send it on; the answer of one that knows what this replica does not; None when none does."""
        return next((found for reply in self.broadcast(body) if (found := reply.read(what)) is not None), None)

    def fetch_first_bytes(self) -> bytes | None:
        """Likewise, an answer that is no JSON."""
        responses = [reply.response for reply in self.broadcast()]
        return next((r.content for r in responses if r is not None and r.is_success), None)

    def collect(self, what: type[T], body: Record | None = None) -> list[T]:
        """Send it on to replicas that must all do as they are asked; their answers.

        Raises: ClipftError when one refused, TransientError when one could not (5xx); an unreachable one has no say.
        """
        return read_agreed(self.broadcast(body), what)


def require_agreement(replies: Sequence[Reply]) -> None:
    """Raises: ClipftError when one refused, TransientError when one could not (5xx); an unreachable one has no say."""
    for reply in replies:
        if reply.refusal:
            raise ClipftError(
                f"the replica at {reply.address}",
                reply.refusal,
                "All replicas must agree; see its log.",
                code="server.replica_refused",
            )
        if reply.response is not None and reply.response.status_code >= 500:
            raise TransientError(
                f"The replica at {reply.address} answered {reply.response.status_code}: {reply.response.text[:300]}"
            )


def read_agreed(replies: Sequence[Reply], what: type[T]) -> list[T]:
    """The answers of replicas that must all do as they are asked. Raises as `require_agreement`."""
    require_agreement(replies)
    return [found for reply in replies if (found := reply.read(what)) is not None]

"""Several servers that speak as one: what changes something, or is not known here, is passed on to the other replicas.

Passed on once (a mark says so), with the caller's own token. A replica that does not answer holds nothing up: it reads the
registry when it is back.
"""

import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from fastapi import Request

from clipft_tasks.core.errors import ClipftError, Transient

MARK, WHO = "x-clipft-relayed", "x-clipft-replica"


class Peers:
    """The other replicas of one server.

    Args:
        named: `host:port`, several separated by commas; a name that has an address for every replica stands for all. Empty: none.
    """

    def __init__(self, named: str) -> None:
        self.named = [name for name in named.replace(",", " ").split() if name]
        self.id = uuid.uuid4().hex[:12]

    def addresses(self) -> list[str]:
        """Where replicas are now, this one perhaps among them: `http://address:port`."""
        found = set()
        for name in self.named:
            host, _, port = name.rpartition(":")
            try:
                known = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
            except OSError:
                continue
            for family, _, _, _, address in known:
                place = str(address[0])
                found.add(f"http://{f'[{place}]' if family == socket.AF_INET6 else place}:{port}")
        return sorted(found)

    def tell(self, request: Request, body: Any = None, path: str = "") -> "list[Answer]":
        """Pass a request on, unless it was passed on to us; what each other replica that answers says.

        Args:
            body: JSON that goes with it; path: another one than the request's own.
        """
        if MARK in request.headers:
            return []
        own = (request.scope.get("raw_path") or request.url.path.encode()).decode()
        return self.ask(request.method, path or own, request.headers.get("authorization", ""), body)

    def ask(self, method: str, path: str, authorization: str, body: Any = None) -> "list[Answer]":
        """Ask every other replica the same at once. This one, and one that has two addresses, count once."""
        places = self.addresses()
        if not places:
            return []
        headers = {MARK: self.id} | ({"authorization": authorization} if authorization else {})

        def one(place: str) -> Answer:
            limits = httpx.Timeout(10 if method == "GET" else 300, connect=2)  # a version that is loaded takes its time
            try:
                said = httpx.request(method, place + path, json=body, headers=headers, timeout=limits)
            except httpx.HTTPError as error:
                return Answer(place, "", None, repr(error))
            return Answer(place, said.headers.get(WHO, ""), said, "")

        with ThreadPoolExecutor(len(places)) as beside:
            answers = list(beside.map(one, places))
        seen, others = {self.id}, []
        for answer in answers:
            if answer.response is None or answer.id not in seen:
                others.append(answer)
                seen.add(answer.id)
        return others


class Answer:
    """What one replica said: `response` None and the reason in `away` when it said nothing."""

    def __init__(self, address: str, id: str, response: httpx.Response | None, away: str) -> None:
        self.address, self.id, self.response, self.away = address, id, response, away

    @property
    def refusal(self) -> str:
        """Why it refused (4xx); "" when it did not."""
        if self.response is None or not 400 <= self.response.status_code < 500:
            return ""
        return str(self.response.json().get("detail", self.response.text))


def heard(answers: list[Answer]) -> Iterator[Any]:
    """The JSON of those that did as they were asked.

    Raises: ClipftError when one refused, Transient when one could not (5xx); one that is away says nothing.
    """
    for answer in answers:
        if answer.refusal:
            raise ClipftError(f"the replica at {answer.address}", answer.refusal, "All replicas must agree; see its log.")
        if answer.response is not None and answer.response.status_code >= 500:
            raise Transient(
                f"The replica at {answer.address} answered {answer.response.status_code}: {answer.response.text[:300]}"
            )
    for answer in answers:
        if answer.response is not None:
            yield answer.response.json()


def together(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Several replicas' reports of one trial, as one: counts add up, agreement by images, the slowest replica's latency."""
    made = dict(reports[0])
    for name in ("requests", "images", "errors"):
        made[name] = sum(r[name] for r in reports)
    agreed = sum((r["agreement"] or 0) * r["images"] for r in reports)
    made["agreement"] = agreed / made["images"] if made["images"] else None
    made["seconds_p95"] = {
        who: max((r["seconds_p95"][who] for r in reports if r["seconds_p95"][who] is not None), default=None)
        for who in made["seconds_p95"]
    }
    return made

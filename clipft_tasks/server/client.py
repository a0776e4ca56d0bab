"""How the pipeline speaks with the clipft server."""

import time
from typing import Any

import httpx

from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..core.settings import settings


class Refusal(ClipftError):
    """The server said no (4xx)."""

    def __init__(self, status: int, what: str, why: str) -> None:
        self.status = status
        super().__init__(what, why)


def call(method: str, path: str, *, json: Any = None, timeout: float = 30) -> httpx.Response:
    """One request to the server, with the token that lets it change state and marks it as no traffic: no drift is measured on it.

    Raises:
        Transient: the server does not answer, or is not ready (5xx).
        Refusal: it refuses (4xx), with its own reason.
    """
    token = settings().server_token
    headers = {"X-Clipft-Probe": "1"} | ({"Authorization": f"Bearer {token.get_secret_value()}"} if token else {})
    try:
        response = httpx.request(method, settings().server_url + path, json=json, headers=headers, timeout=timeout)
    except httpx.TransportError as error:
        raise Transient(f"The server at {settings().server_url} does not answer: {error!r}.") from error
    if response.status_code >= 500:
        raise Transient(f"The server at {settings().server_url} answered {response.status_code}: {response.text[:500]}")
    if response.status_code >= 400:
        reason = (
            response.json().get("detail", response.text)
            if "json" in response.headers.get("content-type", "")
            else response.text
        )
        raise Refusal(response.status_code, f"the server at {settings().server_url}", f"{method} {path} was refused: {reason}")
    return response


def agree(domain: str, version: str, seconds: float = 60) -> int:
    """Wait until every replica of the server that answers has this version live; returns how many there are.

    Raises: Transient when one still answers with another version after `seconds`.
    """
    until = time.monotonic() + seconds
    while True:
        there = [r for r in call("GET", "/v1/replicas").json() if r["live"]]  # one without any gets no traffic
        others = {
            r["address"] or "the one that answers": r["live"].get(domain) for r in there if r["live"].get(domain) != version
        }
        if there and not others:
            if len(there) > 1:
                say(f"All {len(there)} replicas answer with version {version}.")
            return len(there)
        if time.monotonic() > until:
            raise Transient(f"Not every replica answers with version {version} of {domain}: {others or 'none is ready'}.")
        time.sleep(0.5)

"""What happens around every request: ids, the caller, limits before the body is read, the client's patience, and metrics."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import numpy as np
from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..http.addresses import address_of
from . import security
from .admission import SMALL_BODY, Admission
from .error_handlers import answer
from .errors import ClientGoneError, QueueFullError, RequestRejectedError, shortened
from .fair_queue import CLIENT
from .replicas import REPLICA_ID
from .request_log import RequestIds, about, trace_of
from .security import Rule
from .server import Server, server_of
from .tracing import Note

log, audit = logging.getLogger("uvicorn.error"), logging.getLogger("clipft.audit")
ANSWER_ID = "X-Clipft-Answer-Id"
CLIENT_ID = re.compile(r"[ -~]{1,128}")  # what a client may call its request
SLOWEST = 50_000  # bytes a second that a body must come at, beyond the first seconds
REFUSED = (400, 401, 403, 404, 408, 411, 413, 415, 422, 429, 499)
LARGE_BODY = 8 * 2**20  # bytes after which memory is given back
GONE = 499  # how a request is counted whose client hung up
SEND_SECONDS = 30.0  # that a client may take to read a piece of an answer
POLICY = (  # a browser runs and asks nothing but this server's own, whatever a page or an answer in it says
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
SAFE = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip


@dataclass
class Exchange:
    """One request and how far its answer is."""

    request: Request
    server: Server
    rule: Rule
    replaced: bool = False
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    is_over: bool = False  # the last byte of the answer went out
    is_gone: bool = False  # the client hung up before


class RequestGuard:
    """The ASGI middleware around all routes.

    Answers are named by an id that the server makes, `X-Clipft-Answer-Id`: feedback and deletion go by it alone. The id that a
    client gives its request is said back in `X-Request-Id` and logged; two requests may share it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope)
        server, state = server_of(request), request.state
        state.id = state.client_id = uuid.uuid4().hex
        state.domain, state.caller = "", server.keys.anybody  # routes say whose model a request was about, see `count_for`
        exchange = Exchange(request, server, _rule(request))

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[ANSWER_ID], headers["X-Request-Id"] = state.id, state.client_id
                for name, value in SAFE.items():
                    headers.setdefault(name, value)
                if exchange.status == 405:  # Starlette names the methods of one route alone
                    headers["Allow"] = ", ".join(sorted(_methods(request)))
                if server.replicas.names:
                    headers[REPLICA_ID] = server.replicas.id
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                raise ClientGoneError from None  # it does not read its answer
            exchange.is_over |= message["type"] == "http.response.body" and not message.get("more_body", False)

        said = request.headers.get("x-request-id", "")
        client = said if CLIENT_ID.fullmatch(said) else ""
        trace = trace_of(request.headers.get("traceparent", ""))
        asked = {"http.request.method": request.method, "url.path": shortened(request.url.path), "clipft.answer": state.id}
        with (
            about(RequestIds(state.id, client, trace)),
            server.tracing.request(request.method, request.headers, asked) as note,
        ):
            try:
                await self._answer(exchange, receive, send_on)
            except ClientGoneError:
                exchange.is_gone = True
            except Exception as error:
                if exchange.status:  # the answer had begun; all that is left is to end it short
                    log.error("an answer broke off", exc_info=error)
                    raise
                await answer(request, error)(scope, receive, send_on)
            finally:
                self._count(exchange, note)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        await _identify(exchange)
        _check_head(exchange)
        with exchange.server.admission.requests.taken(1):
            await exchange.server.admission.turns.take()
            await self._answer_admitted(exchange, receive, send)

    async def _answer_admitted(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        request, rule, admission = exchange.request, exchange.rule, exchange.server.admission
        if rule.streams or request.method not in ("POST", "PUT", "PATCH"):
            return await self._run(exchange, receive, receive, send)
        length = int(request.headers["content-length"])
        counted = length if length > SMALL_BODY else 0
        taken = 0
        try:
            body, came = np.empty(length, np.uint8).data, 0  # memory is taken as it is filled
            async for chunk in _chunks(receive, length, admission):
                if counted:  # as it comes: what is only announced keeps nobody out
                    admission.bodies.take(len(chunk), is_small=False)
                    taken += len(chunk)
                body[came : came + len(chunk)] = chunk
                came += len(chunk)
            request.state.body = body = body[:came]
            await self._run(exchange, _replay(body), receive, send)
        finally:
            admission.bodies.give_back(taken)
            if taken > LARGE_BODY:
                request.state.body = body = memoryview(b"")
                exchange.server.decoder.give_back_later()

    async def _run(self, exchange: Exchange, body: Receive, receive: Receive, send: Send) -> None:
        """The route. Where its work may be taken back, it ends when the client hangs up and when its time is over."""
        if not exchange.rule.is_inference:
            return await self.app(exchange.request.scope, body, send)
        this = asyncio.current_task()
        assert this is not None

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            if not exchange.is_over:
                exchange.is_gone = True
                this.cancel()

        watching = None if exchange.rule.streams else asyncio.create_task(watch())
        try:
            async with asyncio.timeout(None if exchange.rule.streams else exchange.server.options.deadline_seconds):
                await self.app(exchange.request.scope, body, send)
        except asyncio.CancelledError:
            if not exchange.is_gone:
                raise  # the server ends
            this.uncancel()
        except TimeoutError:
            raise QueueFullError("This takes longer than a request may") from None
        finally:
            if watching:
                watching.cancel()

    @staticmethod
    def _count(exchange: Exchange, note: Note) -> None:
        """Metrics, the end of the request's span, and a line of the audit log for whatever changes something."""
        request, metrics = exchange.request, exchange.server.metrics
        route = getattr(request.scope.get("route"), "path", "unknown")
        status = GONE if exchange.is_gone else exchange.status or 500
        metrics.requests.labels(route, request.state.domain, str(status)).inc()
        note({"http.route": route, "http.response.status_code": status, "clipft.domain": request.state.domain})
        if exchange.rule.scope in (security.Scope.FEEDBACK, security.Scope.OPERATE) and request.method not in ("GET", "HEAD"):
            record = {
                "caller": request.state.caller.name, "from": request.client.host if request.client else "", "method": request.method,
                "path": shortened(request.url.path), "status": status, "answer": request.state.id, "request": request.state.client_id,
                "trace": trace_of(request.headers.get("traceparent", "")),
            }  # fmt: skip
            # Anybody can be refused as often as they like; `clipft_requests_total` counts them all.
            if status not in REFUSED or request.state.caller.name or exchange.server.audited_refusals.admits(1):
                audit.info(json.dumps(record))
        if not exchange.is_gone and not exchange.rule.streams:  # how long a stream lasts is its client's matter
            metrics.latency.labels(route).observe(time.perf_counter() - exchange.began)


def count_for(request: Request, domain: str) -> None:
    """From now on a request counts as one of this domain. For domains that exist: anybody can ask for any name."""
    request.state.domain = domain


def _rule(request: Request) -> Rule:
    """The rule of the route that will answer."""
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is Match.FULL:
            return security.rule_of(route, request.method)
    return Rule(None)  # not found, or not with this method


def _methods(request: Request) -> set[str]:
    """All methods of a path, whichever route answers each."""
    there = [route for route in request.app.router.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in there for method in getattr(route, "methods", None) or ()}


async def _identify(exchange: Exchange) -> None:
    """Who asks; from now on this task works for that client. Who shows no key waits for its turn.

    Raises RequestRejectedError for an address that asks too often.
    """
    request, rule, admission = exchange.request, exchange.rule, exchange.server.admission
    caller = request.state.caller = exchange.server.keys.identify(request.headers.get("authorization", ""))
    client = f"key {caller.name}" if caller.name else address_of(request.client.host if request.client else "")
    CLIENT.set(client)
    if not caller.name:
        await (admission.health_rate if rule.is_health else admission.rate).admit(client, rule.weight)


def _check_head(exchange: Exchange) -> None:
    """All that a request's head tells. Raises RequestRejectedError."""
    request, rule, server = exchange.request, exchange.rule, exchange.server
    said = request.headers.get("x-request-id", "")
    if said and not CLIENT_ID.fullmatch(said):
        raise RequestRejectedError(
            400, "X-Request-Id may have 1 to 128 printable ASCII characters; this one is refused, not cut."
        )
    request.state.client_id = said or request.state.id
    server.keys.check(request.state.caller, rule.scope)
    if rule.streams or request.method not in ("POST", "PUT", "PATCH"):
        return
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestRejectedError(415, "The request is refused: a body comes as it is, without Content-Encoding.")
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise RequestRejectedError(411, "The request is refused: send a Content-Length.")
    most = server.admission.most_bytes(rule.body)
    if int(length) > most:
        allowed = f"{most / 2**20:g} MiB" if most >= 2**20 else f"{most / 2**10:g} KiB"
        raise RequestRejectedError(413, f"The request is refused: {int(length):,} bytes, more than {allowed}.")


async def _chunks(receive: Receive, length: int, admission: Admission) -> AsyncIterator[bytes]:
    """A body as it comes. Raises RequestRejectedError where it comes too slowly, ClientGoneError where it breaks off."""
    pause = admission.options.body_seconds
    clock = asyncio.get_running_loop().time
    last = clock() + pause + length / SLOWEST
    while True:
        try:
            async with asyncio.timeout_at(min(last, clock() + pause)):
                message = await receive()
        except TimeoutError:
            raise RequestRejectedError(408, "The rest of the body did not come.", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _replay(body: memoryview) -> Receive:
    """A body that was read, as a route receives it that asks for it; then nothing more comes."""
    left = [body]

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": bytes(left.pop()), "more_body": False}
        await asyncio.Event().wait()  # the end of the request is watched elsewhere
        raise AssertionError

    return receive

"""The keys that clients show: the server's token, which opens all, and those of `clipft key`, read again when their file changes."""

import hmac
import json
import logging
import time

from clipft_tasks.contracts.server_keys import ServerKeys, hashed
from clipft_tasks.core.settings import settings

from .errors import RequestRejectedError
from .rate_limit import RateLimit
from .security import ALL, Caller, Scope

log = logging.getLogger("uvicorn.error")
LOOK_SECONDS = 1.0  # between looks at the file


class Keys:
    """Who may do what.

    Args:
        is_open: whether anybody may infer.
    """

    def __init__(self, is_open: bool) -> None:
        self.anybody = Caller(scopes=frozenset({Scope.INFER}) if is_open else frozenset())
        self._path = settings().server_keys_file
        self._known: dict[str, tuple[Caller, float | None]] = {}
        self._limits: dict[str, RateLimit] = {}
        self._looked, self._stamp = 0.0, (0, 0)

    def identify(self, authorization: str) -> Caller:
        """Who shows this header. A key that is not known is none: clients of other services send theirs."""
        scheme, _, shown = authorization.partition(" ")
        shown = shown.strip()
        if scheme.lower() != "bearer" or not shown:
            return self.anybody
        token = settings().server_token
        if token and token.get_secret_value() and hmac.compare_digest(shown.encode(), token.get_secret_value().encode()):
            return Caller("operator", ALL)
        self._look()
        caller, until = self._known.get(hashed(shown), (self.anybody, None))
        return caller if until is None or time.time() < until else self.anybody

    def check(self, caller: Caller, scope: Scope | None) -> None:
        """Raises RequestRejectedError: 401 where a key is missing, 403 where the caller's, or any, does not open this, 429 beyond
        its quota."""
        if not caller.may(scope):
            token = settings().server_token
            if caller.name:
                raise RequestRejectedError(403, f"The key {caller.name!r} is not for this: it needs the scope {scope}.")
            if not self._known and not (token and token.get_secret_value()):
                raise RequestRejectedError(
                    403,
                    "This server was started without CLIPFT_SERVER_TOKEN, so what needs the token is closed.",
                    code="request.closed",
                )
            raise RequestRejectedError(
                401,
                "Show a key or the server's token as `Authorization: Bearer …`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        limit = self._limits.get(caller.name)
        if limit and scope is not None and not limit.admits(1):
            wait = max(1, round(1 / limit.rate))
            raise RequestRejectedError(
                429, f"The key {caller.name!r} has {limit.burst} requests a minute.", headers={"Retry-After": str(wait)}
            )

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        try:
            found = ServerKeys.from_json(json.loads(self._path.read_bytes()), str(self._path)).keys if stamp[0] else ()
        except Exception as error:  # half-edited by hand: nobody gains or loses a key by that
            log.error("the keys in %s cannot be read, those of before stay: %s", self._path, error)
            return
        self._stamp = stamp
        self._known = {one.sha256: (Caller(one.name, frozenset(map(Scope, one.scopes))), one.until) for one in found}
        quotas = {one.name: one.requests_per_minute for one in found if one.requests_per_minute}
        kept = {name: limit for name, limit in self._limits.items() if quotas.get(name) == limit.rate * 60}
        self._limits = {name: RateLimit(q / 60, max(1, round(q))) for name, q in quotas.items()} | kept

"""Who is asking: a worker by its secret or by a token that it signed, a person by the team's password, the operator."""

import base64
import hmac
import time
from dataclasses import dataclass
from typing import Annotated

import jwt
from fastapi import Depends, Header, Request

from clipft_tasks.contracts.worker_gateway import CLOCK_LEEWAY

from . import policy
from .errors import RefusedError
from .object_signing import ObjectSigner
from .settings import GatewaySettings
from .store import NAME, Worker, WorkerStore
from .tokens import AUDIENCE, TokenIssuer
from .written_once import WrittenOnce

CHALLENGE = {"WWW-Authenticate": 'Basic realm="clipft", charset="UTF-8"'}
AGAIN = "Have an operator run `clipft worker invite {name}` on the control plane, then join again with the new code."


@dataclass(frozen=True)
class Gateway:
    """The parts of one worker gateway. Its methods raise RefusedError with what is wrong and the way out."""

    settings: GatewaySettings
    tokens: TokenIssuer
    store: WorkerStore
    signer: ObjectSigner
    models: WrittenOnce

    @classmethod
    def of(cls, settings: GatewaySettings | None = None) -> "Gateway":
        """With the given settings, or those of the environment. Raises ValueError when a secret is too short."""
        settings = settings or GatewaySettings()
        if len(settings.gateway_token.get_secret_value()) < 32:
            raise ValueError("CLIPFT_GATEWAY_TOKEN has fewer than 32 characters: make one with `openssl rand -hex 32`")
        signer = ObjectSigner(settings.store_bucket, settings.store_reader_key, settings.store_reader_secret.get_secret_value())
        tokens = TokenIssuer(settings.gateway_secret.get_secret_value())
        return cls(settings, tokens, WorkerStore(settings.gateway_home), signer, WrittenOnce(settings.mlflow_uri))

    def _worker_and_secret(self, name: str) -> tuple[Worker | None, str]:
        """Who has this name, and the secret that it must show; without anybody, one that nobody knows. So who only guesses is told
        nothing of who has joined, and not by how long the answer takes either."""
        worker = self.store.worker(name) if NAME.fullmatch(name) else None
        return worker, self.tokens.worker_secret(name[:40], worker.nonce if worker else "")

    def _check_not_revoked(self, worker: Worker) -> None:
        if worker.revoked:
            raise RefusedError(
                403, f"Worker {worker.name} was revoked. {AGAIN.format(name=worker.name)}", code="gateway.revoked"
            )
        self.store.record_seen(worker.name)

    def worker_by_secret(self, name: str, secret: str) -> Worker:
        """The worker that shows its secret."""
        worker, wanted = self._worker_and_secret(name)
        if not hmac.compare_digest(secret.encode(), wanted.encode()) or worker is None:
            raise RefusedError(401, f"{_wrong(name)} {AGAIN.format(name='NAME')}", CHALLENGE, code="gateway.wrong_secret")
        self._check_not_revoked(worker)
        return worker

    def worker_by_token(self, token: str, call: str) -> Worker:
        """The worker that signed an edge API token for this call."""
        try:
            name = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.InvalidTokenError:
            why = "This call needs a worker's token. Start the worker with `clipft worker run`."
            raise RefusedError(401, why, code="gateway.no_token") from None
        worker, secret = self._worker_and_secret(name)
        try:
            claims = jwt.decode(
                token, secret, algorithms=["HS512"], audience=AUDIENCE, leeway=CLOCK_LEEWAY,
                options={"require": ["iat", "exp", "nbf"]},
            )  # fmt: skip
        except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError):
            claims = jwt.decode(token, options={"verify_signature": False})
            late = time.time() - float(claims["iat"])
            raise RefusedError(
                403, f"The clock of worker {name} is {abs(late):.0f} s {'behind' if late > 0 else 'ahead'}; {CLOCK_LEEWAY} are allowed. "
                "Set it by the network: `sudo sntp -sS time.apple.com` (macOS), `sudo timedatectl set-ntp true` (Linux).",
                code="gateway.clock_differs",
            ) from None  # fmt: skip
        except jwt.InvalidTokenError:
            raise RefusedError(403, f"{_wrong(name)} {AGAIN.format(name='NAME')}", code="gateway.wrong_secret") from None
        if worker is None:  # nobody could sign for a name that has none
            raise RefusedError(403, f"{_wrong(name)} {AGAIN.format(name='NAME')}", code="gateway.wrong_secret")
        self._check_not_revoked(worker)
        if policy.normalized_path(str(claims.get("method", ""))) != call:
            raise RefusedError(403, f"This token is for {claims.get('method')!r}, not for {call!r}.", code="gateway.other_call")
        return worker

    def is_person(self, user: str, password: str) -> bool:
        """Whether these are the team's user and password."""
        wanted = self.settings.team_password.get_secret_value() if self.settings.team_password else ""
        same = hmac.compare_digest(password.encode(), wanted.encode()) & (user == self.settings.team_user)
        return bool(wanted and same)


def _wrong(name: str) -> str:
    return f"No worker has the name {name[:40]!r} and this secret: it has not joined, joined again since, or the secret was copied badly."


def credentials(authorization: str) -> tuple[str, str]:
    """User and password of a Basic header. Raises RefusedError when there is none."""
    kind, _, value = authorization.partition(" ")
    try:
        if kind.lower() != "basic":
            raise ValueError
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise RefusedError(401, "Say who you are: a name and a password.", CHALLENGE, code="gateway.no_credentials")
    return user, password


def gateway_of(request: Request) -> Gateway:
    """The gateway that got a request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(gateway_of)]
Authorization = Annotated[str, Header()]


def calling_worker(gateway: GatewayDep, authorization: Authorization = "") -> Worker:
    """The worker that shows its name and secret."""
    return gateway.worker_by_secret(*credentials(authorization))


def require_operator(gateway: GatewayDep, authorization: Authorization = "") -> None:
    """Only who shows the operator's token."""
    token = authorization.removeprefix("Bearer ")
    if not hmac.compare_digest(token.encode(), gateway.settings.gateway_token.get_secret_value().encode()):
        raise RefusedError(
            403, "That is not CLIPFT_GATEWAY_TOKEN. It stands in the control plane's .env.", code="gateway.wrong_operator_token"
        )


WorkerDep = Annotated[Worker, Depends(calling_worker)]

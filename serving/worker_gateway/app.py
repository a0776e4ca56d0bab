"""The door as a service: `/auth/*` for the gateway, `/v1/*` for workers, `/admin/*` for the operator, `/jwks` for Airflow.

The gateway asks `/auth/edge|mlflow|data` before it lets a request through; what the door answers is what the caller sees.
A worker's secret opens these three and nothing else. To Airflow the door vouches for it with a signature of its own, so the
installation's real token secret never leaves the control plane, and who is revoked here is out at once.
"""

import base64
import hmac
import time
from collections.abc import Callable
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from clipft_tasks.core import versions

from . import policy
from .object_signing import Objects, key_of
from .settings import DoorSettings
from .store import HOURS, NAME, Book, Worker
from .tokens import AUDIENCE, LEEWAY, Keys

ASK = {"WWW-Authenticate": 'Basic realm="clipft", charset="UTF-8"'}
AGAIN = "Have an operator run `clipft worker invite {name}` on the control plane, then join again with the new code."


class Invitation(BaseModel):
    name: str = Field(max_length=40)
    hours: float = Field(HOURS, gt=0, le=24 * 30)


class Code(BaseModel):
    code: str = Field(max_length=200)
    device: str = Field("", max_length=200)


def create_app(settings: DoorSettings | None = None) -> FastAPI:
    """The app. Raises ValueError when a secret is too short."""
    settings = settings or DoorSettings()  # type: ignore[call-arg]  # from the environment
    keys, book = Keys(settings.door_secret.get_secret_value()), Book(settings.door_home / "door.db")
    objects = Objects(settings.store_bucket, settings.store_reader_key, settings.store_reader_secret.get_secret_value())
    app = FastAPI(title="clipft door", docs_url=None, redoc_url=None, openapi_url=None)

    def known(name: str) -> Worker:
        """The worker of a name. Raises HTTPException when nobody has it, or no longer."""
        worker = book.worker(name) if NAME.fullmatch(name) else None
        if worker is None:
            raise HTTPException(401, f"No worker {name!r} has joined. {AGAIN.format(name='NAME')}", ASK)
        if worker.revoked:
            raise HTTPException(403, f"Worker {name} was revoked. {AGAIN.format(name=name)}")
        book.saw(name)
        return worker

    def by_password(user: str, password: str) -> Worker:
        worker = known(user)
        if not hmac.compare_digest(password.encode(), keys.secret_of(worker.name, worker.nonce).encode()):
            raise HTTPException(
                401, f"The secret of worker {user} is wrong; it joined again since, or was copied badly. {AGAIN.format(name=user)}", ASK
            )  # fmt: skip
        return worker

    def worker_of(authorization: Annotated[str, Header()] = "") -> Worker:
        user, password = _basic(authorization)
        return by_password(user, password)

    def operator(authorization: Annotated[str, Header()] = "") -> None:
        token = authorization.removeprefix("Bearer ")
        if not hmac.compare_digest(token.encode(), settings.door_token.get_secret_value().encode()):
            raise HTTPException(403, "That is not CLIPFT_DOOR_TOKEN. It stands in the control plane's .env.")

    def person(user: str, password: str) -> bool:
        wanted = settings.team_password.get_secret_value() if settings.team_password else ""
        same = hmac.compare_digest(password.encode(), wanted.encode()) & (user == settings.team_user)
        return bool(wanted and same)

    # The gateway asks ----------------------------------------------------------------------------------------------

    @app.get("/auth/edge")
    def auth_edge(authorization: Annotated[str, Header()] = "", x_forwarded_uri: Annotated[str, Header()] = "/") -> Response:
        path = policy.path_of(x_forwarded_uri)
        if path is None:
            raise HTTPException(400, "That path is not written plainly.")
        call = policy.edge_call(path)
        if call is None:  # pages of Airflow's plugin: Airflow asks for its own token
            return Response(headers={"Authorization": authorization} if authorization else {})
        if call == "health":
            return Response()
        worker = _recognize(authorization, call, known, keys)
        if (name := policy.owner(call)) and name != worker.name:
            raise HTTPException(403, f"Worker {worker.name} asked in the name of {name}.")
        return Response(headers={"Authorization": keys.passes(worker.name)})

    @app.get("/auth/mlflow")
    def auth_mlflow(
        authorization: Annotated[str, Header()] = "",
        x_forwarded_method: Annotated[str, Header()] = "GET",
        x_forwarded_uri: Annotated[str, Header()] = "/",
    ) -> Response:
        user, password = _basic(authorization)
        if person(user, password):
            return Response()
        worker = by_password(user, password)
        if not policy.may_mlflow(x_forwarded_method, x_forwarded_uri):
            what = f"{x_forwarded_method} {x_forwarded_uri.partition('?')[0]}"
            raise HTTPException(
                403, f"Worker {worker.name} may not {what}: it may write runs and read models. Registering, promoting and deleting "
                "are done on the control plane.",
            )  # fmt: skip
        return Response()

    @app.get("/auth/data")
    def auth_data(
        authorization: Annotated[str, Header()] = "",
        x_forwarded_method: Annotated[str, Header()] = "GET",
        x_forwarded_uri: Annotated[str, Header()] = "/",
    ) -> Response:
        user, password = _basic(authorization)
        if not person(user, password):
            by_password(user, password)
        if x_forwarded_method not in ("GET", "HEAD"):
            raise HTTPException(403, "Data may be read here and not written: versions are made on the control plane.")
        if not x_forwarded_uri.startswith("/objects/"):
            return Response()
        key = key_of(x_forwarded_uri)
        if key is None:
            raise HTTPException(404, "Below /objects there are objects of data sets, by their digest, and nothing else.")
        return Response(headers=objects.signed(x_forwarded_method, key))

    # Workers ask ---------------------------------------------------------------------------------------------------

    def installation() -> dict[str, Any]:
        """What a worker compares itself with, and where everything is."""
        return versions.here() | {
            "time": time.time(),
            "addresses": {
                "airflow": settings.airflow_address.rstrip("/"),
                "mlflow": settings.mlflow_address.rstrip("/"),
                "data": settings.data_address.rstrip("/"),
                "studies": f"{settings.airflow_address.rstrip('/')}/door/v1/studies" if settings.tuning_url else "",
            },
        }

    @app.get("/v1/time")
    def now() -> dict[str, float]:
        return {"time": time.time()}

    def refuse_code() -> HTTPException:
        return HTTPException(403, f"That code is unknown, was used, or is too old. {AGAIN.format(name='NAME')}")

    @app.post("/v1/look")
    def look(code: Code) -> dict[str, Any]:
        """What a worker must match; the code can still be used afterwards."""
        name = book.invited(code.code)
        if name is None:
            raise refuse_code()
        return installation() | {"name": name}

    @app.post("/v1/join")
    def join(code: Code) -> dict[str, Any]:
        worker = book.join(code.code, code.device)
        if worker is None:
            raise refuse_code()
        return installation() | {"name": worker.name, "secret": keys.secret_of(worker.name, worker.nonce)}

    @app.get("/v1/me")
    def me(worker: Annotated[Worker, Depends(worker_of)]) -> dict[str, Any]:
        return installation() | {"name": worker.name}

    @app.delete("/v1/me")
    def leave(worker: Annotated[Worker, Depends(worker_of)]) -> dict[str, bool]:
        return {"left": book.revoke(worker.name)}

    if settings.tuning_url:
        from .study_proxy import Studies

        studies = Studies(settings.tuning_url)

        @app.post("/v1/studies/{call}", dependencies=[Depends(worker_of)])
        async def study(call: str, request: Request) -> Response:
            return await studies.answer(call, await request.body())

    # The operator and Airflow ask ------------------------------------------------------------------------------------

    @app.post("/admin/invitations", dependencies=[Depends(operator)])
    def invite(invitation: Invitation) -> dict[str, Any]:
        if not NAME.fullmatch(invitation.name):
            raise HTTPException(422, "A worker's name has small letters, digits and hyphens, at most 40.")
        code = book.invite(invitation.name, invitation.hours)
        return {"code": code, "url": settings.airflow_address.rstrip("/"), "hours": invitation.hours}

    @app.get("/admin/workers", dependencies=[Depends(operator)])
    def workers() -> dict[str, Any]:
        public = ("name", "joined", "seen", "device", "revoked")
        return {
            "workers": [{k: getattr(w, k) for k in public} for w in book.workers()],
            "invitations": book.invitations(),
            "time": time.time(),
        }

    @app.delete("/admin/workers/{name}", dependencies=[Depends(operator)])
    def revoke(name: str) -> dict[str, bool]:
        if not book.revoke(name):
            raise HTTPException(404, f"No worker {name!r} has joined or is invited.")
        return {"revoked": True}

    @app.get("/jwks")
    def jwks() -> dict[str, Any]:
        return keys.jwks()

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        book.invitations()  # the table answers
        return JSONResponse({"status": "ok"})

    return app


def _basic(authorization: str) -> tuple[str, str]:
    """User and password of a Basic header. Raises HTTPException when there is none."""
    kind, _, value = authorization.partition(" ")
    try:
        if kind.lower() != "basic":
            raise ValueError
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise HTTPException(401, "Say who you are: a name and a password.", ASK)
    return user, password


def _recognize(token: str, call: str, known: Callable[[str], Worker], keys: Keys) -> Worker:
    """The worker that signed an edge API token for this call. Raises HTTPException with what is wrong and the way out."""
    try:
        name = str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.InvalidTokenError:
        raise HTTPException(401, "This call needs a worker's token. Start the worker with `clipft worker run`.") from None
    worker = known(name)
    try:
        claims = jwt.decode(
            token, keys.secret_of(worker.name, worker.nonce), algorithms=["HS512"], audience=AUDIENCE, leeway=LEEWAY,
            options={"require": ["iat", "exp", "nbf"]},
        )  # fmt: skip
    except (jwt.ExpiredSignatureError, jwt.ImmatureSignatureError):
        claims = jwt.decode(token, options={"verify_signature": False})
        late = time.time() - float(claims["iat"])
        raise HTTPException(
            403, f"The clock of worker {name} is {abs(late):.0f} s {'behind' if late > 0 else 'ahead'}; {LEEWAY} are allowed. "
            "Set it by the network: `sudo sntp -sS time.apple.com` (macOS), `sudo timedatectl set-ntp true` (Linux).",
        ) from None  # fmt: skip
    except jwt.InvalidTokenError:
        raise HTTPException(403, f"The secret of worker {name} is wrong. {AGAIN.format(name=name)}") from None
    if policy.path_of(str(claims.get("method", ""))) != call:
        raise HTTPException(403, f"This token is for {claims.get('method')!r}, not for {call!r}.")
    return worker

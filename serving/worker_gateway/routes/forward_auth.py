"""Forward-auth: the reverse proxy asks whether a request may pass, and what it must carry from here on."""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from .. import policy
from ..authentication import Authorization, GatewayDep, credentials
from ..errors import RefusedError
from ..object_signing import object_key

Method = Annotated[str, Header(alias="x-forwarded-method")]
Uri = Annotated[str, Header(alias="x-forwarded-uri")]
router = APIRouter(prefix="/auth")


@router.get("/edge")
def edge(gateway: GatewayDep, authorization: Authorization = "", uri: Uri = "/") -> Response:
    """Airflow: a worker's call of the edge API passes with a token that Airflow trusts."""
    path = policy.normalized_path(uri)
    if path is None:
        raise RefusedError(400, "That path is not written plainly.", code="gateway.invalid_path")
    call = policy.edge_call(path)
    if call is None:  # pages of Airflow's plugin: Airflow asks for its own token
        return Response(headers={"Authorization": authorization} if authorization else {})
    if call == "health":
        return Response()
    worker = gateway.worker_by_token(authorization, call)
    if (name := policy.worker_named_in(call)) and name != worker.name:
        raise RefusedError(403, f"Worker {worker.name} asked in the name of {name}.", code="gateway.other_name")
    return Response(headers={"Authorization": gateway.tokens.issue_token(worker.name)})


@router.get("/mlflow")
def mlflow(gateway: GatewayDep, authorization: Authorization = "", method: Method = "GET", uri: Uri = "/") -> Response:
    """MLflow: people everything, workers what the policy allows."""
    user, password = credentials(authorization)
    if gateway.is_person(user, password):
        return Response()
    worker = gateway.worker_by_secret(user, password)
    if not policy.is_allowed(method, uri):
        what = f"{method} {uri.partition('?')[0]}"
        raise RefusedError(
            403, f"Worker {worker.name} may not {what}: it may write runs and read models. Registering, promoting and deleting "
            "are done on the control plane.",
            code="gateway.not_allowed",
        )  # fmt: skip
    gateway.models.check(method, uri)
    return Response()


@router.get("/data")
def data(gateway: GatewayDep, authorization: Authorization = "", method: Method = "GET", uri: Uri = "/") -> Response:
    """Data sets, to read: the repository, and objects with a signature for the store."""
    user, password = credentials(authorization)
    if not gateway.is_person(user, password):
        gateway.worker_by_secret(user, password)
    if method not in ("GET", "HEAD"):
        raise RefusedError(
            403, "Data may be read here and not written: versions are made on the control plane.", code="gateway.not_allowed"
        )
    if not uri.startswith("/objects/"):
        return Response()
    key = object_key(uri)
    if key is None:
        raise RefusedError(
            404, "Below /objects there are objects of data sets, by their digest, and nothing else.", code="gateway.no_object"
        )
    return Response(headers=gateway.signer.sign(method, key))

"""What is live, here and on the other replicas, and making another version live."""

from fastapi import APIRouter, Request

from clipft_tasks.contracts.serving import LoadResult, ModelInfo, ModelList, ReplicaState

from ..embedding_request import split_model_id
from ..middleware import count_for
from ..rollout import load_on_all, replica_states
from ..schemas import LoadRequest
from ..security import OPERATE
from ..server import RelayDep, ServerDep

router = APIRouter()


@router.get("/v1/models")
def models(server: ServerDep) -> ModelList:
    """The live version of each domain and where it comes from."""
    return ModelList(data=server.store.describe())


@router.get("/v1/models/{domain}")
def model(domain: str, request: Request, server: ServerDep) -> ModelInfo:
    """One of them: a domain, or `domain@version`."""
    found = server.inference.find_model(*split_model_id(domain))
    count_for(request, found.domain)
    return next(one for one in server.store.describe() if one.domain == found.domain)


@router.put("/v1/models/{domain}", dependencies=OPERATE)
def load(domain: str, body: LoadRequest, request: Request, server: ServerDep, relay: RelayDep) -> LoadResult:
    """Make a registered version live. It answers when the version is live; the old one goes on answering until then.

    409 for a version that is not its domain's champion, unless it is to be held.
    """
    count_for(request, domain)
    return load_on_all(server.store, relay, domain, body.version, body.hold)


@router.get("/v1/replicas", dependencies=OPERATE)
def replicas(server: ServerDep, relay: RelayDep) -> list[ReplicaState]:
    """What is live where: this replica, then the others."""
    return replica_states(server.store, relay)

"""What classified images really show, and requests that must be forgotten."""

from fastapi import APIRouter, HTTPException, Request

from clipft_tasks.contracts.serving import DeletedCaptures, FeedbackResult
from clipft_tasks.core.errors import Transient

from ..errors import UnknownAnswerError
from ..middleware import count_for
from ..replicas import read_agreed
from ..schemas import FeedbackRequest
from ..security import TOKEN_REQUIRED
from ..server import RelayDep, ServerDep

router = APIRouter()


@router.post("/v1/feedback", dependencies=TOKEN_REQUIRED)
def feedback(body: FeedbackRequest, request: Request, server: ServerDep, relay: RelayDep) -> FeedbackResult:
    """What a classified image really shows. Named by the `X-Request-Id` of the answer; each image counts once."""
    try:
        judgment = server.monitor.add_feedback(body.request_id, body.index, body.label)
    except UnknownAnswerError:
        if found := relay.fetch_first(FeedbackResult, body):
            return found
        why = f"No answer of request {body.request_id!r} with an image {body.index} is remembered."
        raise HTTPException(404, why) from None
    count_for(request, judgment.domain)
    server.captures.label_later(judgment.domain, body.request_id, body.index, body.label)
    return FeedbackResult(predicted=judgment.predicted, version=judgment.version, counted=judgment.is_new)


@router.delete("/v1/requests/{request_id:path}", dependencies=TOKEN_REQUIRED)
def forget(request_id: str, server: ServerDep, relay: RelayDep) -> DeletedCaptures:
    """Delete whatever was captured of a request, on every replica.

    One that does not answer may still hold some: then this is answered 503, and asking again deletes the rest.
    """
    server.monitor.answers.forget(request_id)
    deleted, replies = server.captures.delete(request_id), relay.broadcast()
    if silent := [reply.address for reply in replies if reply.response is None]:
        raise Transient(f"Deleted {deleted} here; the replicas at {', '.join(silent)} do not answer. Ask again.")
    return DeletedCaptures(deleted=deleted + sum(other.deleted for other in read_agreed(replies, DeletedCaptures)))

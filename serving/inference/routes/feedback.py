"""What classified images really show, and requests that must be forgotten."""

from fastapi import APIRouter, HTTPException, Request

from clipft_tasks.contracts.serving import DeletedCaptures, FeedbackResult, RememberedAnswer
from clipft_tasks.core.errors import TransientError

from ..errors import UnknownAnswerError, shortened
from ..middleware import ANSWER_ID, count_for
from ..replicas import read_agreed
from ..schemas import FeedbackRequest
from ..security import FEEDBACK, OPERATE
from ..server import RelayDep, ServerDep

router = APIRouter()


@router.post("/v1/feedback", dependencies=FEEDBACK)
def feedback(body: FeedbackRequest, request: Request, server: ServerDep, relay: RelayDep) -> FeedbackResult:
    """What a classified image really shows. Named by the `X-Clipft-Answer-Id` of the answer. The first word about an image counts,
    for the accuracy and as its label; `PUT /v1/captures/…` corrects a label.

    A caller's own request id names no answer: two requests may share it.
    """
    try:
        judgment = server.monitor.add_feedback(body.answer_id, body.index, body.label)
    except UnknownAnswerError:
        if found := relay.fetch_first(FeedbackResult, body):
            return found
        why = f"No answer {shortened(body.answer_id)!r} with an image {body.index} is remembered. Answers are named by {ANSWER_ID}."
        raise HTTPException(404, why) from None
    count_for(request, judgment.domain)
    if judgment.is_new:
        server.captures.label_later(judgment.domain, body.answer_id, body.index, body.label)
    return FeedbackResult(predicted=judgment.predicted, version=judgment.version, counted=judgment.is_new)


@router.get("/v1/answers/{answer_id}", dependencies=OPERATE)
def remembered(answer_id: str, server: ServerDep, relay: RelayDep) -> RememberedAnswer:
    """Which version gave an answer, and what it said of each image. 404 where no replica remembers it."""
    if found := server.monitor.answers.get(answer_id):
        return RememberedAnswer(domain=found.domain, version=found.version, labels=found.labels)
    if other := relay.fetch_first(RememberedAnswer):
        return other
    raise HTTPException(404, f"No answer {shortened(answer_id)!r} is remembered. Answers are named by {ANSWER_ID}.")


@router.delete("/v1/requests/{answer_id:path}", dependencies=OPERATE, include_in_schema=False)  # as earlier releases called it
@router.delete("/v1/answers/{answer_id}", dependencies=OPERATE)
def forget(answer_id: str, server: ServerDep, relay: RelayDep) -> DeletedCaptures:
    """Delete whatever was captured of a request and what windows hold of it, on every replica. 404 where no replica knows the answer.

    One that does not answer may still hold some: then this is answered 503, and asking again deletes the rest.
    """
    is_known = server.monitor.forget(answer_id)
    deleted, replies = server.captures.delete(answer_id), relay.broadcast()
    if silent := [reply.address for reply in replies if reply.response is None]:
        raise TransientError(f"Deleted {deleted} here; the replicas at {', '.join(silent)} do not answer. Ask again.")
    knowing = [reply for reply in replies if reply.response is not None and reply.response.status_code != 404]
    if not (is_known or deleted or knowing):
        raise HTTPException(404, f"Nothing is known of an answer {shortened(answer_id)!r}. Answers are named by {ANSWER_ID}.")
    return DeletedCaptures(deleted=deleted + sum(other.deleted for other in read_agreed(knowing, DeletedCaptures)))

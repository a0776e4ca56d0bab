"""Routes about traffic that was answered: feedback, drift, captured images."""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from clipft_tasks.contracts.drift import BaselineAccuracy, DriftSnapshot, WorstSignal
from clipft_tasks.core.errors import ClipftError, Transient
from clipft_tasks.drift.window import DriftMetrics, pooled

from .. import schemas
from ..captures import Captures, hashed
from ..monitor import Monitor, Unknown
from ..replicas import Peers, heard
from ..security import authorised

router = APIRouter()


def _monitor(request: Request) -> Monitor:
    return request.app.state.monitor


def _captures(request: Request) -> Captures:
    return request.app.state.captures


def _peers(request: Request) -> Peers:
    return request.app.state.peers


def _found(request: Request, body: Any = None) -> Response | None:
    """What another replica answers that knows what this one does not; None when none does."""
    for answer in _peers(request).tell(request, body):
        if answer.response is not None and answer.response.is_success:
            return Response(answer.response.content, media_type=answer.response.headers.get("content-type"))
    return None


@router.post("/v1/feedback", response_model=schemas.Judged, dependencies=[Depends(authorised)])
def feedback(asked: schemas.Feedback, request: Request) -> Any:
    """What a classified image really shows. Named by the `X-Request-Id` of the answer; each image counts once."""
    try:
        answer, new = _monitor(request).feedback(asked.request_id, asked.index, asked.label)
    except Unknown:
        if known := _found(request, asked.model_dump()):
            return known
        why = f"No answer of request {asked.request_id!r} with an image {asked.index} is remembered."
        raise HTTPException(404, why) from None
    request.state.domain = answer.domain
    _captures(request).judged(answer.domain, f"{hashed(asked.request_id)}-{asked.index}", asked.label)
    return {"predicted": answer.labels[asked.index], "version": answer.version, "counted": new}


@router.get("/v1/drift/{domain}")
def drift(domain: str, request: Request) -> DriftSnapshot:
    """How far what the live version sees, on all replicas together, is from its reference, measured now."""
    found = _monitor(request).drift_metrics(domain)
    if found is None:
        raise HTTPException(404, f"No live version of {domain} with a reference.")
    request.state.domain = domain
    version, promised, mine = found
    others = []
    for answer in _peers(request).tell(request):
        if answer.response is not None and answer.response.is_success:
            with suppress(ClipftError):  # a replica of another release may not say all of it
                others.append(DriftSnapshot.from_json(answer.response.json(), f"of {answer.address}"))
    same = [
        DriftMetrics(o.drift, o.values, o.images, o.texts, o.feedback, o.rows, o.pairs) for o in others if o.version == version
    ]
    metrics = pooled([mine, *same])
    signal, ratio = metrics.worst
    return DriftSnapshot(
        domain=domain,
        version=version,
        images=metrics.images,
        texts=metrics.texts,
        feedback=metrics.feedback,
        pairs=metrics.pairs,
        rows=metrics.behind,
        drift=metrics.drift,
        values=metrics.values,
        baseline=BaselineAccuracy.model_validate(promised),
        worst=WorstSignal(signal=signal, ratio=ratio),
    )


@router.get("/v1/windows/{domain}", dependencies=[Depends(authorised)])
def window(domain: str, request: Request) -> dict[str, Any]:
    """The rows of every replica's window: appearance, similarity with the classes. For the suggestion."""
    rows = _monitor(request).rows(domain)
    if rows is None:
        raise HTTPException(404, f"No live version of {domain} with a reference.")
    request.state.domain = domain
    for answer in _peers(request).tell(request):
        if answer.response is not None and answer.response.is_success:
            for name, more in answer.response.json().items():
                rows[name] = rows[name] + more
    return rows


@router.get("/v1/captures/{domain}", response_model=list[schemas.Captured], dependencies=[Depends(authorised)])
def captures(domain: str, request: Request) -> list[dict[str, Any]]:
    """What is kept of a domain's traffic, oldest first."""
    _captures(request).flush()
    told = [a.response for a in _peers(request).tell(request) if a.response is not None and a.response.is_success]
    try:
        kept = {c.id: asdict(c) for c in _captures(request).all(domain)}
    except KeyError:
        raise HTTPException(404, f"{domain!r} is no domain.") from None
    for said in told:  # the same again where replicas share a folder
        kept = {c["id"]: c for c in said.json()} | kept
    return sorted(kept.values(), key=lambda c: (c["time"], c["id"]))


@router.put("/v1/captures/{domain}", dependencies=[Depends(authorised)])
def capture(domain: str, asked: schemas.Share, request: Request) -> dict[str, Any]:
    """Turn keeping on or off until the server restarts. CLIPFT_SERVING_CAPTURE and the domain's profile do so for good.

    Returns: domain, share, before (the share that was set so far; null for none).
    """
    kept = _captures(request)
    before = kept.asked.pop(domain, None)
    if asked.share is not None:
        kept.asked[domain] = asked.share
    list(heard(_peers(request).tell(request, asked.model_dump())))
    return {"domain": domain, "share": asked.share, "before": before}


@router.get("/v1/captures/{domain}/{name}", response_class=Response, dependencies=[Depends(authorised)])
def captured(domain: str, name: str, request: Request) -> Response:
    """A captured image, as it was sent."""
    try:
        return Response(_captures(request).image_bytes(domain, name), media_type="application/octet-stream")
    except KeyError:
        if known := _found(request):
            return known
        raise HTTPException(404, f"No image {name!r} of {domain} is kept.") from None


@router.put("/v1/captures/{domain}/{name}", dependencies=[Depends(authorised)])
def label(domain: str, name: str, asked: schemas.Label, request: Request) -> Any:
    """Say what a captured image shows."""
    try:
        _captures(request).label(domain, name, asked.label)
    except KeyError:
        if known := _found(request, asked.model_dump()):
            return known
        raise HTTPException(404, f"No image {name!r} of {domain} is kept.") from None
    except OSError as error:
        raise HTTPException(507, f"The label cannot be written ({error.strerror}); the one before stands.") from error
    return {"id": name, "label": asked.label}


@router.delete("/v1/requests/{request_id:path}", dependencies=[Depends(authorised)])
def forget(request_id: str, request: Request) -> dict[str, int]:
    """Delete whatever was captured of a request, on every replica.

    One that does not answer may still hold some: then this is answered 503, and asking again deletes the rest.
    """
    deleted, others = _captures(request).delete(request_id), _peers(request).tell(request)
    if away := [a.address for a in others if a.response is None]:
        raise Transient(f"Deleted {deleted} here; the replicas at {', '.join(away)} do not answer. Ask again.")
    return {"deleted": deleted + sum(said["deleted"] for said in heard(others))}

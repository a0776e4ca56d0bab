"""Images of the traffic that are kept for labeling."""

from fastapi import APIRouter, HTTPException, Response

from clipft_tasks.contracts.drift import Capture
from clipft_tasks.contracts.serving import CaptureLabel, CaptureShare, DeletedCaptures
from clipft_tasks.core.errors import TransientError
from clipft_tasks.domains import domain_names

from ..errors import shortened
from ..replicas import read_agreed
from ..schemas import CaptureLabelRequest, CaptureShareRequest
from ..security import OPERATE
from ..server import RelayDep, ServerDep

router = APIRouter(dependencies=OPERATE)


@router.get("/v1/captures/{domain}")
def captures(domain: str, server: ServerDep, relay: RelayDep) -> list[Capture]:
    """What is kept of a domain's traffic, oldest first."""
    server.captures.flush()
    others = relay.fetch_all(list[Capture])
    try:
        own = server.captures.all(domain)
    except KeyError:
        raise HTTPException(404, f"{shortened(domain, 64)!r} is no domain.") from None
    kept = {c.id: c for c in [c for other in others for c in other] + own}  # the same twice where replicas share a folder
    return sorted(kept.values(), key=lambda c: (c.time, c.id))


@router.put("/v1/captures/{domain}")
def set_share(domain: str, body: CaptureShareRequest, server: ServerDep, relay: RelayDep) -> CaptureShare:
    """Turn keeping on or off until the server restarts. CLIPFT_SERVING_CAPTURE and the domain's profile do so for good."""
    if domain not in server.store.live and domain not in domain_names():
        raise HTTPException(404, f"{shortened(domain, 64)!r} is no domain.")
    before = server.captures.set_share(domain, body.share)
    relay.collect(CaptureShare, body)
    return CaptureShare(domain=domain, share=body.share, before=before)


@router.get("/v1/captures/{domain}/{name}", response_class=Response)
def captured_image(domain: str, name: str, server: ServerDep, relay: RelayDep) -> Response:
    """A captured image, as it was sent."""
    try:
        content = server.captures.image_bytes(domain, name)
    except KeyError:
        found = relay.fetch_first_bytes()
        if found is None:
            raise HTTPException(404, f"No image {shortened(name, 64)!r} of {shortened(domain, 64)} is kept.") from None
        content = found
    return Response(content, media_type="application/octet-stream")


@router.put("/v1/captures/{domain}/{name}")
def label(domain: str, name: str, body: CaptureLabelRequest, server: ServerDep, relay: RelayDep) -> CaptureLabel:
    """Say what a captured image shows."""
    try:
        server.captures.label(domain, name, body.label)
    except KeyError:
        if found := relay.fetch_first(CaptureLabel, body):
            return found
        raise HTTPException(404, f"No image {shortened(name, 64)!r} of {shortened(domain, 64)} is kept.") from None
    except OSError as error:
        raise HTTPException(507, f"The label cannot be written ({error.strerror}); the one before stands.") from error
    return CaptureLabel(id=name, label=body.label)


@router.delete("/v1/captures/{domain}/{name}")
def delete(domain: str, name: str, server: ServerDep, relay: RelayDep) -> DeletedCaptures:
    """Delete a captured image, on every replica. 404 where none keeps it; 503 where one does not answer."""
    server.captures.flush()
    try:
        deleted = server.captures.remove(domain, name)
    except KeyError:
        deleted = 0
    replies = relay.broadcast()
    if silent := [reply.address for reply in replies if reply.response is None]:
        raise TransientError(f"Deleted {deleted} here; the replicas at {', '.join(silent)} do not answer. Ask again.")
    knowing = [reply for reply in replies if reply.response is not None and reply.response.status_code != 404]
    if not (deleted or knowing):
        raise HTTPException(404, f"No image {shortened(name, 64)!r} of {shortened(domain, 64)} is kept.")
    return DeletedCaptures(deleted=deleted + sum(other.deleted for other in read_agreed(knowing, DeletedCaptures)))

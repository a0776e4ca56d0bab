"""Changes of what is live, on this replica and the others."""

import asyncio
from collections.abc import Iterable, Sequence

from clipft_tasks import tracking
from clipft_tasks.contracts.serving import LoadResult, ReplicaState, TrialLatency, TrialReport
from clipft_tasks.core.errors import ClipftError, TransientError

from .model_store import ModelStore
from .replicas import Relay, require_agreement
from .schemas import LoadRequest


def load_on_all(store: ModelStore, relay: Relay, domain: str, version: str, hold: bool = False) -> LoadResult:
    """Make a version live here, then on the other replicas; where one of them refuses it, on none.

    Args:
        hold: it stays live whatever the registry's champion is, until the champion is made live by a request.
    Raises: ClipftError when it is not the champion and not to be held, or a replica refuses it; TransientError when one could not say.
    """
    if not hold and not relay.is_relayed:
        _require_champion(domain, version)
    before, held = store.live.get(domain), store.held.get(domain)
    loaded = store.load(domain, version, hold)
    replies = relay.broadcast(LoadRequest(version=version, hold=hold))
    try:
        require_agreement(replies)
    except ClipftError:
        if before is None or before.version != version:
            store.restore(domain, before, held or "")
        if before and before.version != version:
            relay.broadcast(LoadRequest(version=before.version, hold=held is not None))
        raise
    others = {reply.address: "away" if reply.response is None else version for reply in replies}
    return loaded.model_copy(update={"replicas": others})


def _require_champion(domain: str, version: str) -> None:
    try:
        champion = tracking.champions().get(domain)
    except Exception as error:
        raise TransientError("The registry cannot be read, so which version is champion is not known.") from error
    if champion != version:
        raise ClipftError(
            f"version {version} of {domain}",
            f"it is not the champion ({f'version {champion} is' if champion else 'none is'}), which would take its place within seconds",
            "Promote it, or say `hold: true` to keep it live whatever the registry says.",
            code="server.not_champion",
        )


def replica_states(store: ModelStore, relay: Relay) -> list[ReplicaState]:
    """What is live where: this replica, then the others."""
    states = [ReplicaState(address="", live=store.versions, problem=store.problem)]
    for reply in relay.broadcast(path="/readyz"):
        known = {"live": {}, "problem": reply.unreachable} if reply.response is None else reply.response.json()
        states.append(ReplicaState(address=reply.address, live=known.get("live", {}), problem=known.get("problem", "")))
    return states


def merge_reports(reports: Sequence[TrialReport]) -> TrialReport:
    """Several replicas' reports of one trial, as one: counts add up, agreement by images, the slowest replica's latency."""
    images = sum(report.images for report in reports)
    agreed = sum((report.agreement or 0) * report.images for report in reports)
    latencies = [report.seconds_p95 for report in reports]
    return reports[0].model_copy(
        update={
            "requests": sum(report.requests for report in reports),
            "images": images,
            "errors": sum(report.errors for report in reports),
            "agreement": agreed / images if images else None,
            "seconds_p95": TrialLatency(
                champion=_slowest(latency.champion for latency in latencies),
                challenger=_slowest(latency.challenger for latency in latencies),
            ),
        }
    )


def _slowest(seconds: Iterable[float | None]) -> float | None:
    return max((value for value in seconds if value is not None), default=None)


async def follow_registry(store: ModelStore, seconds: float) -> None:
    """Follow the registry's champions: at the start, and promotions that no request announced to this replica."""
    while True:
        await asyncio.to_thread(store.follow_registry)
        if not seconds and not store.problem:
            return
        await asyncio.sleep(seconds or 5)

"""Changes of what is live, on this replica and the others."""

import asyncio
from collections.abc import Iterable, Sequence

from clipft_tasks.contracts.serving import LoadResult, ReplicaState, TrialLatency, TrialReport
from clipft_tasks.core.errors import ClipftError

from .model_store import ModelStore
from .replicas import Relay, require_agreement
from .schemas import LoadRequest


def load_on_all(store: ModelStore, relay: Relay, domain: str, version: str) -> LoadResult:
    """Make a version live here, then on the other replicas; where one of them refuses it, on none.

    Raises: ClipftError when a replica refuses it, Transient when one could not say.
    """
    before = store.live.get(domain)
    loaded = store.load(domain, version)
    replies = relay.broadcast(LoadRequest(version=version))
    try:
        require_agreement(replies)
    except ClipftError:
        if before and before.version != version:
            store.load(domain, before.version)
            relay.broadcast(LoadRequest(version=before.version))
        raise
    others = {reply.address: "away" if reply.response is None else version for reply in replies}
    return loaded.model_copy(update={"replicas": others})


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

"""Trials of a challenger on live traffic: in the shadow of the champion, or as a canary."""

from fastapi import APIRouter, HTTPException, Request

from clipft_tasks.contracts.serving import TrialEnd, TrialReport

from ..errors import shortened
from ..middleware import count_for
from ..rollout import merge_reports
from ..schemas import TrialRequest
from ..security import OPERATE, Scope, caller_of
from ..server import RelayDep, ServerDep

router = APIRouter()


@router.put("/v1/shadows/{domain}", dependencies=OPERATE)
def start(domain: str, body: TrialRequest, request: Request, server: ServerDep, relay: RelayDep) -> TrialReport:
    """Let a registered version see a share of the domain's traffic: in the shadow of the champion, or as a canary."""
    count_for(request, domain)
    trial = server.store.start_trial(domain, body.version, body.share, body.answers)
    return merge_reports([trial.report(), *relay.collect(TrialReport, body)])


@router.get("/v1/shadows/{domain}")
def report(domain: str, request: Request, server: ServerDep, relay: RelayDep) -> TrialReport:
    """How the challenger fares, compared with the champion: on all replicas with the token, on this one without."""
    trial = server.store.trials.get(domain)
    others = relay.fetch_all(TrialReport) if caller_of(request).may(Scope.OPERATE) else []
    reports = ([trial.report()] if trial else []) + others
    if not reports:
        raise HTTPException(404, f"No version of {shortened(domain, 64)!r} is tried at the moment.")
    return merge_reports(reports)


@router.delete("/v1/shadows/{domain}", dependencies=OPERATE)
def end(domain: str, server: ServerDep, relay: RelayDep) -> TrialEnd:
    """End the trial; the champion answers everything again."""
    ended = server.store.end_trial(domain)
    others = relay.collect(TrialEnd)
    return TrialEnd(ended=ended or any(other.ended for other in others))

"""rollout: the challenger proves itself on live traffic, in shadow and as canary, before it is promoted."""

import time

from ..contracts.serving import TrialReport
from ..contracts.stages import RolloutResult
from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..server.client import ServerClient
from ..server.trial import objection
from ..spec import RunSpec
from .champion import changing

POLL = 2.0  # seconds between two looks


def run(spec: RunSpec, version: str, dag_run: str = "") -> RolloutResult:
    """Try a version; nothing happens when the spec asks for no trial, or nothing is live to compare it with.

    Raises: ClipftError when it disagrees, is slow, fails, or too little traffic came; the champion answers everything again. Busy
        while another version of the domain is tried.
    """
    asked = spec.rollout
    if not asked.requests:
        say("No trial on live traffic is asked for (rollout.requests is 0).")
        return RolloutResult(version=version, tried=False)
    server = ServerClient()
    live = {model.domain: model.version for model in server.models()}
    if live.get(spec.domain, version) == version:
        say("No trial: no other version is live to compare with.")
        return RolloutResult(version=version, tried=False)
    with changing(spec.domain, dag_run, "trial") as lease:
        try:
            shadow = _half(spec, version, "shadow", False)
            canary = _half(spec, version, "canary", True, champion_p95=shadow.seconds_p95.champion)
        except BaseException as error:
            try:
                server.end_trial(spec.domain)
            except (ClipftError, TransientError) as also:  # what ended the trial matters more
                error.add_note(str(also))
            raise
        server.end_trial(spec.domain)
        lease.release()
    return RolloutResult(version=version, tried=True, shadow=shadow, canary=canary)


def _half(spec: RunSpec, version: str, name: str, answers: bool, champion_p95: float | None = None) -> TrialReport:
    """One half of the trial. `champion_p95` is the champion's latency, should it answer nothing itself meanwhile."""
    asked, server = spec.rollout, ServerClient()
    report = server.trial(spec.domain, version, asked.share, answers)
    until = time.monotonic() + 60 * asked.minutes
    while report.requests < asked.requests:
        if time.monotonic() > until:
            why = f"it saw {report.requests} of {asked.requests} requests in {asked.minutes:g} minutes"
            raise _refused(version, name, why)
        time.sleep(POLL)
        report = server.trial(spec.domain, version, asked.share, answers)  # again: a server that was restarted begins anew
    if why := objection(report, asked, champion_p95):
        raise _refused(version, name, why)
    agreed = "" if report.agreement is None else f", agreement {report.agreement:.0%}"
    say(f"As {name} version {version} saw {report.requests} requests{agreed}, none failed.")
    return report


def _refused(version: str, name: str, why: str) -> ClipftError:
    return ClipftError(
        f"version {version} as {name}", why, "It stays challenger; the champion goes on answering.", code="rollout.refused"
    )

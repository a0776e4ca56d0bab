"""rollout: the challenger proves itself on live traffic, in shadow and as canary, before it is promoted."""

import time

from ..contracts.serving import TrialReport
from ..contracts.stages import RolloutResult
from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..server.client import ServerClient
from ..spec import RunSpec

POLL = 2.0  # seconds between two looks


def run(spec: RunSpec, version: str) -> RolloutResult:
    """Try a version; nothing happens when the spec asks for no trial, or nothing is live to compare it with.

    Raises: ClipftError when it disagrees, is slow, fails, or too little traffic came; the champion answers everything again.
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
    try:
        shadow = _half(spec, version, "shadow", False)
        canary = _half(spec, version, "canary", True, champion_p95=shadow.seconds_p95.champion)
    except BaseException as error:
        try:
            server.end_trial(spec.domain)
        except (ClipftError, Transient) as also:  # what ended the trial matters more
            error.add_note(str(also))
        raise
    server.end_trial(spec.domain)
    return RolloutResult(version=version, tried=True, shadow=shadow, canary=canary)


def _half(spec: RunSpec, version: str, name: str, answers: bool, champion_p95: float | None = None) -> TrialReport:
    """One half of the trial. `champion_p95` is the champion's latency, should it answer nothing itself meanwhile."""
    asked, server = spec.rollout, ServerClient()
    seen = server.trial(spec.domain, version, asked.share, answers)
    until = time.monotonic() + 60 * asked.minutes
    while seen.requests < asked.requests:
        if time.monotonic() > until:
            raise _refused(version, name, f"it saw {seen.requests} of {asked.requests} requests in {asked.minutes:g} minutes")
        time.sleep(POLL)
        seen = server.trial(
            spec.domain, version, asked.share, answers
        )  # the same again: a server that was restarted begins anew
    if seen.errors:
        raise _refused(version, name, f"{seen.errors} of {seen.requests} requests failed on it")
    if seen.agreement is not None and seen.agreement < asked.min_agreement:
        why = (
            f"it names the champion's class for {seen.agreement:.0%} of the images, at least {asked.min_agreement:.0%} is asked"
        )
        raise _refused(version, name, why)
    slow, usual = seen.seconds_p95.challenger, seen.seconds_p95.champion or champion_p95
    if slow and usual and slow > asked.max_slowdown * usual:
        raise _refused(version, name, f"one request in twenty takes {slow:.2f} s, the champion's {usual:.2f} s")
    agreed = "" if seen.agreement is None else f", agreement {seen.agreement:.0%}"
    say(f"As {name} version {version} saw {seen.requests} requests{agreed}, none failed.")
    return seen


def _refused(version: str, name: str, why: str) -> ClipftError:
    return ClipftError(f"version {version} as {name}", why, "It stays challenger; the champion goes on answering.")

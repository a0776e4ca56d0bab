"""rollout: the challenger proves itself on live traffic, in shadow and as canary, before it is promoted."""

import time
from typing import Any

from ..core.console import say
from ..core.errors import ClipftError, Transient
from ..server.client import call
from ..spec import RunSpec

POLL = 2.0  # seconds between two looks


def run(spec: RunSpec, version: str) -> dict[str, Any]:
    """Try a version; nothing happens when the spec asks for no trial, or nothing is live to try it beside.

    Returns: version, tried (bool), shadow and canary (the server's reports).
    Raises: ClipftError when it disagrees, is slow, fails, or too little traffic came; the champion answers everything again.
    """
    asked = spec.rollout
    if not asked.requests:
        say("No trial on live traffic is asked for (rollout.requests is 0).")
        return {"version": version, "tried": False}
    live = {m["domain"]: m["version"] for m in call("GET", "/v1/models").json()}
    if live.get(spec.domain, version) == version:
        say("No trial: no other version is live to compare with.")
        return {"version": version, "tried": False}
    try:
        shadow = _half(spec, version, "shadow", False)
        canary = _half(spec, version, "canary", True, usual=shadow["seconds_p95"]["champion"])
    except BaseException as error:
        try:
            call("DELETE", f"/v1/shadows/{spec.domain}")
        except (ClipftError, Transient) as also:  # what ended the trial matters more
            error.add_note(str(also))
        raise
    call("DELETE", f"/v1/shadows/{spec.domain}")
    return {"version": version, "tried": True, "shadow": shadow, "canary": canary}


def _half(spec: RunSpec, version: str, name: str, answers: bool, usual: float | None = None) -> dict[str, Any]:
    """One half of the trial. `usual` is the champion's latency, should it answer nothing itself meanwhile."""
    asked = spec.rollout
    body = {"version": version, "share": asked.share, "answers": answers}
    path = f"/v1/shadows/{spec.domain}"
    seen = call("PUT", path, json=body, timeout=300).json()
    until = time.monotonic() + 60 * asked.minutes
    while seen["requests"] < asked.requests:
        if time.monotonic() > until:
            raise _refused(
                version, name, f"it saw {seen['requests']} of {asked.requests} requests in {asked.minutes:g} minutes"
            )
        time.sleep(POLL)
        seen = call("PUT", path, json=body, timeout=300).json()  # the same again: a server that was restarted begins anew
    if seen["errors"]:
        raise _refused(version, name, f"{seen['errors']} of {seen['requests']} requests failed on it")
    if seen["agreement"] is not None and seen["agreement"] < asked.min_agreement:
        why = f"it names the champion's class for {seen['agreement']:.0%} of the images, at least {asked.min_agreement:.0%} is asked"
        raise _refused(version, name, why)
    slow, usual = seen["seconds_p95"]["challenger"], seen["seconds_p95"]["champion"] or usual
    if slow and usual and slow > asked.max_slowdown * usual:
        raise _refused(version, name, f"one request in twenty takes {slow:.2f} s, the champion's {usual:.2f} s")
    agreed = "" if seen["agreement"] is None else f", agreement {seen['agreement']:.0%}"
    say(f"As {name} version {version} saw {seen['requests']} requests{agreed}, none failed.")
    return dict(seen)


def _refused(version: str, name: str, why: str) -> ClipftError:
    return ClipftError(f"version {version} as {name}", why, "It stays challenger; the champion goes on answering.")

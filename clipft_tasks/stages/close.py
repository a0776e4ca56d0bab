"""close: what came of an incident, for the breaker and for the record."""

import time
from collections.abc import Mapping
from typing import Any

from ..core.console import say
from ..drift import incidents
from ..spec import RunSpec


def run(
    spec: RunSpec, states: Mapping[str, str | None], incident: str = "", live: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """End the domain's incident, or begin to watch the version that came of it.

    Args:
        states: of the run's tasks, by name.
        incident: which one the run answered; "" for none (a person started it), or one that is closed since.
        live: accuracy and judged of the version that saw the drift, from `suggest`.
    Returns: outcome (watched, recovered, declined or failed), failed (the tasks), breaker, failures.
    Raises: Transient when MLflow is away.
    """
    from .. import tracking
    from ..drift import incident_store

    failed = sorted(name for name, state in states.items() if state in ("failed", "upstream_failed"))
    done = {name for name, state in states.items() if state == "success"}
    now, champion = time.time(), tracking.version_number(tracking.champion(spec.domain))
    outcome = "failed" if failed else "recovered" if done & {"finetune", "rollback"} else "declined"

    def ended(state: incidents.State) -> incidents.State:
        nonlocal outcome
        found = state.incident
        if found is None or found.id != incident:
            return state
        if found.watch and found.quiet:  # a retry of what was written below
            outcome = "watched"
            return state
        if found.watch:  # the new version was worse, whatever was done about it
            outcome = "failed"
            what = f"back to version {found.watch.before}" if "rollback" in done else "not gone back"
            return incidents.close(state, outcome, now, ", ".join([found.watch.worse, what, *failed]))
        if outcome == "recovered" and "finetune" in done and champion not in ("", found.version):
            outcome = "watched"
            metrics = live or {}
            watched = incidents.Watch(champion, found.version, now, metrics.get("accuracy"), metrics.get("judged", 0))
            return incidents.watch(state, watched)
        return incidents.close(state, outcome, now, ", ".join(failed))

    state = incident_store.update(spec.domain, ended)
    say(f"{spec.domain}: {outcome}; the breaker is {state.breaker(now)} ({state.failures} failures in a row).")
    return {"outcome": outcome, "failed": failed, "breaker": state.breaker(now), "failures": state.failures}

"""close: what came of an incident, for the breaker and for the record."""

import time
from collections.abc import Mapping
from typing import Any

from ..drift import incidents
from ..progress import say

ACTED = ("finetune", "rollback")


def run(domain: str, states: Mapping[str, str | None], incident: str = "") -> dict[str, Any]:
    """Close the domain's incident, if one is open.

    Args:
        states: of the run's tasks, by name.
        incident: which one the run answered; "" for none (a person started it), or one that is closed since.
    Returns: outcome (recovered, declined or failed), failed (the tasks), breaker, failures.
    """
    from .. import tracking

    failed = [name for name, state in states.items() if state in ("failed", "upstream_failed")]
    if failed:
        outcome = "failed"
    elif any(states.get(name) == "success" for name in ACTED):
        outcome = "recovered"
    else:
        outcome = "declined"
    now = time.time()

    def ended(state: incidents.State) -> incidents.State:
        if state.incident is None or state.incident.id != incident:
            return state
        return incidents.close(state, outcome, now, ", ".join(sorted(failed)))

    state = tracking.change_incidents(domain, ended)
    say(f"{domain}: {outcome}; the breaker is {state.breaker(now)} ({state.failures} failures in a row).")
    return {"outcome": outcome, "failed": sorted(failed), "breaker": state.breaker(now), "failures": state.failures}

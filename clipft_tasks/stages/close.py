"""close: what came of an incident, for the breaker and for the record."""

import time
from collections.abc import Mapping
from typing import Any

from ..drift import incidents
from ..progress import say

ACTED = ("finetune", "rollback")


def run(domain: str, states: Mapping[str, str | None]) -> dict[str, Any]:
    """Close the domain's incident, if one is open.

    Args:
        states: of the run's tasks, by name.
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
    state = incidents.close(tracking.incidents(domain), outcome, now, ", ".join(sorted(failed)))
    tracking.keep_incidents(domain, state)
    say(f"{domain}: {outcome}; the breaker is {state.breaker(now)} ({state.failures} failures in a row).")
    return {"outcome": outcome, "failed": sorted(failed), "breaker": state.breaker(now), "failures": state.failures}

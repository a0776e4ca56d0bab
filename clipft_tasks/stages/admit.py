"""admit: which alarms are acted on. The one place where alarms of all ways meet."""

import time
from typing import Any

from ..drift import incidents
from ..progress import say


def run(breaches: list[dict[str, Any]], cool_down: float = incidents.COOL_DOWN, run: str = "") -> list[dict[str, Any]]:
    """Open an incident for each domain where nothing speaks against it.

    Args:
        breaches: domain, version, causes (worst first).
        cool_down: seconds after an incident before the next of its domain.
        run: who asks, for the record; the same run again is let in again, so that its retry finds what it had begun.
    Returns: for each admitted one: domain, causes, incident (its id).
    Raises: Transient when MLflow is away.
    """
    from .. import tracking

    admitted: list[dict[str, Any]] = []
    for breach in breaches:
        domain, now = breach["domain"], time.time()
        if any(a["domain"] == domain for a in admitted):
            continue  # another version of it, in the moment of a swap
        alarm = incidents.Incident(domain, breach["version"], list(breach["causes"]), now, run)
        said: list[tuple[bool, str]] = []

        def decide(
            state: incidents.State, alarm: incidents.Incident = alarm, said: list[tuple[bool, str]] = said
        ) -> incidents.State:
            if run and state.incident and state.incident.run == run:
                said[:] = [(True, "this run opened it before")]
                return state
            state, let_in, reason = incidents.admit(state, alarm, alarm.opened, cool_down)
            said[:] = [(let_in, reason)]
            return state

        state = tracking.change_incidents(domain, decide)
        let_in, reason = said[0]
        causes = ", ".join(alarm.causes)
        say(f"{domain} version {alarm.version} ({causes}): {'admitted' if let_in else 'not taken'}, {reason}.")
        if let_in:
            assert state.incident
            admitted.append({"domain": domain, "causes": alarm.causes, "incident": state.incident.id})
    return admitted

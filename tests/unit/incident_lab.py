"""Alarms and incidents, in a time of their own."""

from clipft_tasks.drift import incidents
from clipft_tasks.drift.incidents import Incident, State, Watch

NOW = 1_800_000_000.0
MINUTE, HOUR = 60.0, 3600.0
TAG = 5000  # characters that a tag of MLflow's registry holds


def alarm(at: float = NOW, *causes: str, version: str = "1") -> Incident:
    return Incident("general", version, list(causes or ("image",)), at)


def watched(at: float = NOW, undone: bool = False) -> State:
    """An incident of version 1 that version 2 came of at `at`."""
    state, _, _ = incidents.admit(State(failures=1, undone=undone), alarm(at - 10 * MINUTE), at - 10 * MINUTE)
    return incidents.watch(state, Watch("2", "1", at, 0.75, 40))

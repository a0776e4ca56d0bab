"""Incidents as a tag of the domain's registered model, so that scheduler, workers and CLI see the same."""

import json
import time
from collections.abc import Callable

from mlflow.exceptions import MlflowException

from ..contracts.drift import IncidentState
from ..tracking import client, exclusively, model_name, retryable
from ..tracking.connection import is_unreachable
from .incidents import expire_probation

TAG = "clipft.incidents"
MOST = 4500  # characters of a record; a tag of MLflow's registry holds 5,000


def load(domain: str) -> IncidentState:
    """What is known of a domain's drift incidents. Raises: TransientError when MLflow is away."""
    with retryable():
        try:
            tags = client().get_registered_model(model_name(domain)).tags
        except MlflowException as error:
            if is_unreachable(error):
                raise
            return IncidentState()
    state = IncidentState.from_json(json.loads(tags.get(TAG, "{}")), f"of {domain} in the registry")
    return expire_probation(state, time.time())


def update(domain: str, change: Callable[[IncidentState], IncidentState]) -> IncidentState:
    """Read, change and write back, alone among all machines; nothing is written where nothing changed. Returns the new state."""
    with exclusively(f"incidents.{domain}"):
        before = load(domain)
        after = change(before)
        if after != before:
            save(domain, after)
        return after


def save(domain: str, state: IncidentState) -> None:
    """Write it back; history first, then signals are cut to what a tag holds."""
    content = state.to_json()
    while len(text := json.dumps(content)) > MOST:
        if content["history"]:
            content["history"] = content["history"][1:]
        else:
            content["incident"]["signals"].pop()  # worst first
    with retryable():
        client().set_registered_model_tag(model_name(domain), TAG, text)

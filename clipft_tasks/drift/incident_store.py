"""Incidents as a tag of the domain's registered model, so that scheduler, workers and CLI see the same."""

import json
import time
from collections.abc import Callable

from filelock import FileLock
from mlflow.exceptions import MlflowException

from ..core.settings import settings
from ..tracking import client, model_name, retryable
from ..tracking.connection import is_unreachable
from .incidents import State, settle

TAG = "clipft.incidents"


def load(domain: str) -> State:
    """What is known of a domain's drift incidents."""
    with retryable():
        try:
            tags = client().get_registered_model(model_name(domain)).tags
        except MlflowException as error:
            if is_unreachable(error):
                raise
            return State()
    return settle(State.of(json.loads(tags.get(TAG, "{}"))), time.time())


def update(domain: str, change: Callable[[State], State]) -> State:
    """Read, change and write back, alone on this machine; nothing is written where nothing changed. Returns the new state."""
    with FileLock(str(settings().folder("cache") / f"incidents-{domain}.lock")):
        before = load(domain)
        after = change(before)
        if after != before:
            save(domain, after)
        return after


def save(domain: str, state: State) -> None:
    """Write it back; history first, then causes are cut to what a tag holds."""
    content = state.to_dict()
    while len(text := json.dumps(content)) > 4500:
        if content["history"]:
            content["history"] = content["history"][1:]
        else:
            content["incident"]["causes"].pop()  # worst first
    with retryable():
        client().set_registered_model_tag(model_name(domain), TAG, text)

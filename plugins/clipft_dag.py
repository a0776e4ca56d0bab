"""What the DAG files share: forms from the spec, stages as tasks, approval. Imports neither torch nor mlflow."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, Param
from airflow.sdk.exceptions import AirflowFailException

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names
from clipft_tasks.spec import RunSpec, form
from clipft_tasks.stages.call import call_stage

POOL = "accelerator"

# A task that is lost (killed, machine gone) is tried again at once: every stage resumes or finds its own work.
DEFAULTS = {
    "owner": "clipft",
    "retries": 6,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(hours=1),
}

# Tasks that need the accelerator: one at a time, on the queue and executor that settings name.
ACCELERATOR: dict[str, Any] = {
    "pool": POOL,
    "queue": settings().accelerator_queue,
    "executor": settings().accelerator_executor,
    "execution_timeout": timedelta(hours=24),
}


def dataset_asset(domain: str) -> Asset:
    """The asset that stands for a domain's newest dataset version."""
    return Asset(name=f"clipft-dataset-{domain}", uri=f"clipft://datasets/{domain}", group="clipft")


DATASET_ASSETS = {domain: dataset_asset(domain) for domain in domain_names()}


def params(*sections: str, only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> dict[str, Param]:
    """The Airflow form of some sections of the spec, plus single fields by dotted name."""
    fields = form(sections) | {name: field for name, field in form().items() if name in only}
    out = {}
    for name, field in fields.items():
        if name not in without:
            schema = {k: v for k, v in field.items() if k not in ("default", "description")}
            if schema["type"] == "string" and field.get("default") == "" and "enum" not in schema:
                schema["type"] = ["string", "null"]  # the form marks other strings as required
            out[name] = Param(field.get("default"), description=field.get("description"), **schema)
    return out


def spec_of(given: Mapping[str, Any]) -> RunSpec:
    """The spec of a form. Fails the task, with the field's name, when it is wrong."""
    try:
        return RunSpec.from_flat(dict(given))
    except ClipftError as error:
        raise AirflowFailException(str(error)) from error


def stage(name: str, given: Mapping[str, Any], **inputs: Any) -> dict[str, Any]:
    """Run a stage in this task's process: `NAME` for its `run`, `NAME.PART` for a part of one that takes several tasks.

    What a person must mend fails the task without retries; everything else is tried again.
    """
    _end_with_parent()
    spec = spec_of(given)
    began = time.monotonic()
    try:
        result = call_stage(name, spec, inputs)
    except ClipftError as error:
        raise AirflowFailException(str(error)) from error
    return dict(result) | {"seconds": round(time.monotonic() - began, 2)}


def _end_with_parent() -> None:
    """Let this process end with its supervisor.

    Airflow puts a task into a process group of its own and does not end it when the supervisor is killed; it would go on
    training beside its own retry.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    def stop(number: int, frame: Any) -> None:
        raise SystemExit("stopped by SIGTERM; the next try resumes")

    if "PYTEST_CURRENT_TEST" not in os.environ:
        threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
        signal.signal(signal.SIGTERM, stop)


class Approval(ApprovalOperator):
    """Waits for a person when the run's spec asks for one; otherwise passes at once."""

    template_fields = (*ApprovalOperator.template_fields, "required")

    def __init__(self, *, required: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.required = required

    def execute(self, context: Any) -> Any:
        if str(self.required).lower() != "true":
            self.log.info("No approval asked for (approval.required is off).")
            return None
        hours = float(context["params"]["approval.hours"])
        self.response_timeout = timedelta(hours=hours)
        self.body = f"{self.body or ''}\n\nUnanswered after {hours:g} h means {', '.join(self.defaults or [])}."
        return super().execute(context)

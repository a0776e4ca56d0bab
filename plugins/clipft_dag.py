"""What the DAG files share: forms from the spec, stages as tasks, approval. Imports neither torch nor mlflow.

`ChainTasks` makes the tasks of stages as clipft_tasks/stages/chain.py declares them. A task's own function takes a `Form` (the run's
parameters) and `StageOutput`s (results of other tasks), and calls `stage`.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow.providers.standard.exceptions import HITLRejectException
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, Context, Param, XComArg, get_current_context, task
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException
from airflow.sdk.timezone import utcnow
from clipft_notices import FAILED, ApprovalWanted, run_is_late, task_failed

from clipft_tasks.core.errors import BusyError, ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names
from clipft_tasks.ops.airflow_client import Airflow
from clipft_tasks.ops.reminders import UNANSWERED
from clipft_tasks.spec import RunSpec, fields, form
from clipft_tasks.spec.form import JsonSchema
from clipft_tasks.stages import chain
from clipft_tasks.stages.call import StageOutput, call_stage

if TYPE_CHECKING:
    from airflow.sdk.execution_time.context import InletEventsAccessor

__all__ = [
    "DATASET_ASSETS", "DEFAULTS", "LATE", "OWN_FORM", "Approval", "ChainTasks", "Form", "StageOutput", "SubRun", "announced", "dataset_asset",
    "options_of", "params", "promote_to_verify", "spec_of", "stage",
]  # fmt: skip

Form: TypeAlias = dict[str, Any]  # a run's `params`: fields of the spec by dotted name, and the DAG's own; JSON of any kind
Options: TypeAlias = dict[str, Any]  # keyword arguments of an operator, or what one is resumed with
POOL = "accelerator"
BUSY = timedelta(seconds=10)  # until a task looks again whether what it waits for is free
log = logging.getLogger("clipft")

# A task that is lost (killed, machine gone) is tried again at once: every stage resumes or finds its own work.
DEFAULTS = {
    "owner": "clipft",
    "retries": 6,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
    "execution_timeout": timedelta(hours=1),
    "on_failure_callback": task_failed,
}


def declared_only(context: Context) -> None:
    """Refuse a run whose form has a field that its DAG does not declare: Airflow takes any, and `verison` would be passed over."""
    dag = context["dag"]
    if unknown := sorted(fields.current(dict(context["params"])).keys() - set(dag.params)):
        why, fix = f"it has no field {', '.join(unknown)}", f"Its fields: {', '.join(dag.params)}."
        raise _failed(ClipftError(f"the form of {dag.dag_id}", why, fix, code="form.unknown_field"))


# For DAGs with a form of their own; that of a spec is checked as a spec, whose errors say more.
OWN_FORM: Options = DEFAULTS | {"pre_execute": declared_only}

# A run that has not ended half an hour after the time that the last ones took on average: somebody is told. For every DAG with tasks
# that work for long.
LATE = DeadlineAlert(
    reference=DeadlineReference.AVERAGE_RUNTIME(max_runs=10, min_runs=3),
    interval=timedelta(minutes=30),
    callback=AsyncCallback(run_is_late),
    name="later than usual",
)

# Tasks that need the accelerator: one at a time, on the queue and executor that settings name.
ACCELERATOR: Options = {
    "pool": POOL,
    "queue": settings().accelerator_queue,
    "executor": settings().accelerator_executor,
}


def dataset_asset(domain: str) -> Asset:
    """The asset that stands for a domain's newest dataset version."""
    return Asset(name=f"clipft-dataset-{domain}", uri=f"clipft://datasets/{domain}", group="clipft")


def announced(revision: str, events: "InletEventsAccessor") -> bool:
    """Whether an event of before told of a dataset version: Airflow's own record, which a killed task has not reached.

    Where Airflow cannot be asked the answer is no: to tell twice costs a run that finds its work done.
    """
    try:
        return any((event.extra or {}).get("revision") == revision for event in events.ascending(False).limit(500))
    except Exception as error:  # of Airflow's own kinds
        log.warning("Whether the dataset version at %s was announced is not known: %s", revision, error)
        return False


DATASET_ASSETS = {domain: dataset_asset(domain) for domain in domain_names()}


# What a person has to look at stands open, in this order; Airflow's form folds up whatever has a section.
OPEN = ("domain", "source", "dataset", "model.start", "train.epochs", "memory.memory_gb", "approval.required")
REQUIRED = ("domain", "source")
NUMBER = r"^\s*\d*\s*$"


def params(
    *sections: str, only: tuple[str, ...] = (), without: tuple[str, ...] = (), folded: tuple[str, ...] = ()
) -> dict[str, Param]:
    """The Airflow form of some sections of the spec, plus single fields by dotted name.

    Args:
        without: fields that are left out.
        folded: fields that stay in their section here, though other forms show them first.
    """
    shown = form(sections) | {name: field for name, field in form().items() if name in only}
    first = [name for name in OPEN if name in shown and name not in folded]
    order = [*first, *(name for name in shown if name not in first)]
    return {name: _param(name, shown[name], name in first) for name in order if name not in without}


def _param(name: str, field: JsonSchema, is_open: bool) -> Param:
    """A field as Airflow's form draws it well.

    It stars what has no null among its types, so only what is required has none; shows Markdown where the plain description is
    empty; and makes a closed menu of an array's examples, where people want to type.
    """
    schema = {k: v for k, v in field.items() if k not in ("default", "description")}
    default, described = field.get("default"), {"description_md": field.get("description", "")}
    if is_open:
        del schema["section"]
    if "array" in schema["type"]:
        schema.pop("examples", None)
        if schema["items"].get("type") == "integer":  # a line each; Airflow has a text area for what is not declared a number
            schema["items"] = {"pattern": NUMBER}
    if name in REQUIRED:
        return Param(**described, **schema | ({} if "enum" in schema else {"minLength": 1, "pattern": r"\S"}))
    if isinstance(schema["type"], str):
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema |= {"enum": [*schema["enum"], None], "values_display": {"null": f"as usual: {default}"}}
    return Param(default, **described, **schema)


def spec_of(given: Form) -> RunSpec:
    """The spec of a form. Fails the task, with the field's name, when it is wrong."""
    try:
        return RunSpec.from_flat(given)
    except ClipftError as error:
        raise _failed(error) from None


def _failed(error: ClipftError) -> AirflowFailException:
    """What ends the task: three lines in its log, above the traceback that Airflow adds."""
    for name, said in (
        ("What", error.what),
        ("Why", error.why),
        ("Way out", error.fix or "docs/errors.md lists what it means."),
    ):
        log.error("%s: %s", name, said)
    try:
        get_current_context()["ti"].xcom_push(key=FAILED, value=error.line)  # for the run's note
    except RuntimeError:  # outside of a run
        pass
    return AirflowFailException(error.line)


def stage(name: str, given: Form | None, **inputs: object) -> StageOutput:
    """Run a stage in this task's process: `NAME` for its `run`, `NAME.PART` for a part of one that takes several tasks.

    What a person must mend fails the task without retries; what another run holds is waited for, without a slot and without
    using a try up; everything else is tried again.
    """
    _end_with_parent()
    _log_by_level()
    spec = spec_of(given or {})
    began = time.monotonic()
    try:
        result = call_stage(name, spec, inputs, dag_run=_dag_run(), last_try=_is_last_try())
    except BusyError as busy:
        log.info("Waiting: %s", busy)
        raise AirflowRescheduleException(datetime.now(UTC) + BUSY) from None
    except ClipftError as error:
        raise _failed(error) from None
    for page, address in (result.get("links") or {}).items():
        print(f"{page}: {address}", flush=True)  # a line of its own, which Airflow's log makes a link
    return result | {"seconds": round(time.monotonic() - began, 2)}


def _dag_run() -> str:
    """The run that this task belongs to, `<dag>/<run>`, for lineage; "" outside of one."""
    try:
        run = get_current_context()["dag_run"]
    except RuntimeError:
        return ""
    return f"{run.dag_id}/{run.run_id}"


def _is_last_try() -> bool:
    """Whether Airflow does not try this task again when this try fails."""
    try:
        ti = get_current_context()["ti"]
    except RuntimeError:
        return True
    return ti.try_number > ti.max_tries


def _log_by_level() -> None:
    """Let MLflow's log lines come through Airflow's log: by itself it writes them to stderr, which Airflow shows as errors."""
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # where it is imported later
    library = logging.getLogger("mlflow")
    library.handlers, library.propagate = [], True


def options_of(name: str) -> Options:
    """Where and how long a stage may run, as operators take it."""
    declared = chain.STAGES[name]
    return (ACCELERATOR if declared.accelerator else {}) | {"execution_timeout": timedelta(hours=declared.hours)}


class ChainTasks:
    """The tasks of a chain's stages, each after those whose results it takes, as clipft_tasks/stages/chain.py declares them.

    Args:
        stages: the chain.
        fields: of the run's form, that make the spec; empty: all.
        outputs: of tasks that are made otherwise, by the name of the stage whose result they have.
    """

    def __init__(
        self, stages: Mapping[str, chain.Stage] = chain.CHAIN, fields: tuple[str, ...] = (), **outputs: XComArg
    ) -> None:
        self._stages, self._fields, self.outputs = stages, fields, outputs

    def add(self, name: str, **options: Any) -> XComArg:  # of the operator
        """The task of a stage."""

        @task(task_id=name, doc_md=self._stages[name].summary, **options_of(name), **options)
        def run(results: StageOutput, params: Form | None = None) -> StageOutput:
            return self.run(name, params, results)

        self.outputs[name] = run(self.needed(name))
        return self.outputs[name]

    def add_each(self, name: str, values: XComArg, shown: str, **options: Any) -> XComArg:  # of the operator
        """The task of a stage that runs once for each of `values`, mapped; `shown` names one, with `{}` for the value."""
        parameter = _each(self._stages[name]).parameter

        @task(
            task_id=name,
            doc_md=self._stages[name].summary,
            map_index_template="{{ shown }}",
            **options_of(name),
            **options,
        )
        def run(value: int, results: StageOutput, params: Form | None = None) -> StageOutput:
            get_current_context()["shown"] = shown.format(value)  # type: ignore[typeddict-unknown-key]
            return self.run(name, params, results, **{parameter: value})

        self.outputs[name] = run.partial(results=self.needed(name)).expand(value=values)
        return self.outputs[name]

    def needed(self, name: str) -> dict[str, XComArg]:
        """The results that a stage takes, by the names of the stages that have them."""
        return {other: self.outputs[other] for other in self._stages[name].needs}

    def run(self, name: str, params: Form | None, results: StageOutput, **inputs: object) -> StageOutput:
        """Run a stage in this task's process, on the results of those that it needs."""
        given = {k: v for k, v in (params or {}).items() if not self._fields or k in self._fields}
        return stage(name, given, **self._stages[name].arguments(lambda other: self._whole(other, results[other])), **inputs)

    def _whole(self, name: str, result: Any) -> StageOutput:  # of a mapped task Airflow gives a sequence of its own
        """A stage's result as the chain knows it: of one that ran for each of several values, all of them."""
        each = self._stages[name].each
        return {each.collected: list(result)} if each else result


def promote_to_verify(tasks: ChainTasks) -> None:
    """The tasks that change the champion, and one that ends them whatever became of them: it gives the domain's lease back, and brings
    registry and server into line."""

    @task(doc_md=chain.STAGES["reconcile"].summary)
    def reconcile(params: Form | None = None) -> StageOutput:
        return stage("reconcile", {"domain": (params or {})["domain"]})

    promoted, _, verified = [tasks.add(name) for name in ("promote", "deploy", "verify")]
    verified >> reconcile().as_teardown(setups=promoted)  # type: ignore[arg-type]  # it takes an XComArg too


def _each(declared: chain.Stage) -> chain.Each:
    if declared.each is None:
        raise ValueError("it runs once, and not for each of several values")
    return declared.each


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

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit("stopped by SIGTERM; the next try resumes")

    if "PYTEST_CURRENT_TEST" not in os.environ:
        threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
        signal.signal(signal.SIGTERM, stop)


class Approval(ApprovalOperator):
    """Waits for a person when the run's spec asks for one; otherwise passes at once."""

    template_fields = (*ApprovalOperator.template_fields, "required")

    def __init__(self, *, required: str, **kwargs: Any) -> None:  # those of Airflow's own
        # A person who says no is no failure to tell people of.
        super().__init__(
            notifiers=[ApprovalWanted()],
            on_failure_callback=[],
            execution_timeout=None,
            assigned_users=[{"id": name, "name": name} for name in settings().approvers.split()] or None,
            **kwargs,
        )
        self.required = required

    def execute(self, context: Context) -> Any:  # what Airflow's own returns
        if str(self.required).lower() != "true":
            self.log.info("No approval asked for (approval.required is off).")
            return None
        if lost := self._lost_answer(context["ti"]):
            self.log.info("Answered before, by a person whose answer an earlier try did not live to act on.")
            return self.execute_complete(context, lost)
        hours = float(context["params"]["approval.hours"] or form()["approval.hours"]["default"])
        self.response_timeout = timedelta(hours=hours)
        self.body = f"{self.body or ''}\n\n{UNANSWERED.format(hours)} {self.REJECT}."
        return super().execute(context)

    def execute_complete(self, context: Context, event: Options) -> object:
        """Nobody answered in time: that is a no.

        Airflow would take `defaults` for the answer, too, but also make their button the one that stands out.
        """
        if event.get("error_type") == "timeout":
            self.log.info("Nobody answered in time: that counts as %s.", self.REJECT)
            event = {"chosen_options": [self.REJECT], "params_input": {}, "responded_at": utcnow(), "responded_by_user": None}
        try:
            return super().execute_complete(context, event)
        except HITLRejectException as error:
            raise AirflowFailException(str(error)) from None  # no try more: a person said no

    def _lost_answer(self, ti: Any) -> Options | None:  # Airflow's own task instance
        """What a person answered to the try before, which was lost. A person who clears the task wants to be asked again."""
        if ti.try_number == 1 or ti.max_tries != self.retries:
            return None
        asked = f"/dags/{ti.dag_id}/dagRuns/{ti.run_id}/taskInstances/{ti.task_id}/{ti.map_index}/hitlDetails"
        try:  # until this try asks, what it is asked is still the question of the try before
            found = Airflow.of_settings(30).call("GET", asked)
        except (ClipftError, TransientError) as error:
            self.log.info("Whether the try before was answered is not known: %s", error)
            return None
        if not found.get("response_received"):
            return None
        answered = {
            "responded_at": datetime.fromisoformat(found["responded_at"]),
            "responded_by_user": found["responded_by_user"],
        }
        return answered | {"chosen_options": found["chosen_options"], "params_input": found["params_input"]}


class SubRun(TriggerDagRunOperator):
    """Starts a run of another DAG and waits for it; where that fails, it says where the reason stands."""

    def execute_complete(self, context: Context, event: tuple[str, Options]) -> None:
        """Go on when the other run has ended."""
        try:
            super().execute_complete(context, event)
        except AirflowException:
            pages, _, _ = context["ti"].log_url.partition("/dags/")
            where = f"{pages}/dags/{self.trigger_dag_id}/runs/{self.trigger_run_id}"
            said = ClipftError(
                f"the run of {self.trigger_dag_id}",
                "it failed",
                f"Its red task says why, and the way out: {where}",
                code="run.failed",
            )
            raise _failed(said) from None

"""
### Drift is explained, approved, and the model re-adapts

`suggest` compares what the server sees with the references of the registered versions and says what to do: nothing, look at
the camera, label images, go back to another version, or re-adapt. `approve` shows that to a person. Re-adapting makes a
dataset version of the old rows and the labeled captures, trains from the champion, and goes through the same evaluation, gate,
promotion and verification as any training: no worse on the new rows, and hardly worse on the old ones (`gain(score) on old`
in `gate.rules`). `close` records what came of it: a new champion is on probation for a day before that counts as recovered, and
`clipft_drift_watch` starts this DAG again to go back when it is worse; repeated failures open the circuit breaker of the domain.
"""

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import Param, XComArg, dag, task
from clipft_dag import DEFAULTS, LATE, Approval, Form, Options, StageOutput, SubRun, params, stage

from clipft_tasks.contracts.drift import ReadaptRequest
from clipft_tasks.contracts.stages import SuggestResult

# It holds no slot meanwhile, and the other run has retries of its own.
RUN: Options = {"wait_for_completion": True, "deferrable": True, "poke_interval": 2, "retries": 0}
SUGGESTED = "{{ ti.xcom_pull(task_ids='suggest')['%s'] }}"


@dag(
    dag_id="clipft_readapt",
    dag_display_name="5 · Re-adaptation (clipft_readapt)",
    description="Explain a drift, and adapt the model to it once a person agrees.",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    deadline=LATE,
    params={
        **params("train", "resolution", "gate", "approval", "rollout", only=("domain",)),
        "approval.required": Param(
            True, type="boolean", title="Wait for approval", description="wait for a person before anything is changed"
        ),
        "incident": Param(
            None, type=["string", "null"], title="Incident", description="which one this answers, so that it is closed at the end"
        ),
        "signals": Param(
            None, type=["array", "null"], items={"type": "string"}, title="Signals", description="of the alert, if there was one"
        ),
    },
    tags=["clipft", "drift", "training"],
    doc_md=__doc__,
    max_active_runs=4,
    render_template_as_native_obj=True,
)  # fmt: skip
def clipft_readapt() -> None:
    @task(doc_md="What drifted, what it looks like, what to do. The log and the task's *Details* link the drift report.")
    def suggest(params: Form | None = None) -> StageOutput:
        request, spec = ReadaptRequest.split(params or {})
        return stage("suggest", spec, signals=request.signals, incident=request.incident)

    approve = Approval(
        task_id="approve",
        required="{{ params['approval.required'] }}",
        subject="{{ params.domain }}: " + SUGGESTED % "action" + "?",
        body=SUGGESTED % "table",
        fail_on_reject=False,
    )

    @task.branch(doc_md="Follow the suggestion.")
    def choose(suggested: StageOutput | XComArg) -> str:
        return {"readapt": "dataset", "rollback": "back"}.get(SuggestResult.model_validate(suggested).action, "nothing")

    @task(doc_md="The suggestion asks for no run of ours; the report says what a person can do.")
    def nothing(suggested: StageOutput | XComArg) -> str:
        return SuggestResult.model_validate(suggested).why

    @task(doc_md="The form of the training: this one's, from the champion, on the version just made.")
    def form(params: Form | None = None, ti: Any = None) -> Form:
        _, spec = ReadaptRequest.split(params or {})
        run = ti.xcom_pull(task_ids="dataset", key="trigger_run_id")
        made = ti.xcom_pull(dag_id="clipft_dataset", run_id=run, task_ids="version")
        return spec | {"model.start": "champion", "dataset": made["dataset"], "approval.required": False}

    @task(doc_md="The form of the rollback.")
    def back(suggested: StageOutput | XComArg, params: Form | None = None) -> dict[str, str]:
        return {"domain": (params or {})["domain"], "version": SuggestResult.model_validate(suggested).version}

    @task(trigger_rule="all_done", on_failure_callback=[], doc_md="Record the outcome; open or close the breaker.")
    def close(params: Form | None = None, run_id: str | None = None, ti: Any = None) -> StageOutput:
        states = ti.get_task_states(dag_id="clipft_readapt", run_ids=[str(run_id)])[str(run_id)]
        request, _ = ReadaptRequest.split(params or {})
        live = (ti.xcom_pull(task_ids="suggest") or {}).get("live")
        return stage("close", {"domain": request.domain}, states=states, incident=request.incident, live=live)

    suggested = suggest()
    chosen = choose(suggested)
    dataset = SubRun(
        task_id="dataset",
        trigger_dag_id="clipft_dataset",
        conf={"domain": "{{ params.domain }}", "source": "captures:{{ params.domain }}"},
        doc_md="Old rows and labeled captures become a dataset version.",
        **RUN,
    )
    trained = form()
    finetune = SubRun(
        task_id="finetune",
        trigger_dag_id="clipft_finetune",
        conf=trained,  # type: ignore[arg-type]  # templated
        doc_md="Train, prove, promote, verify.",
        **RUN,
    )
    going = back(suggested)
    rollback = SubRun(
        task_id="rollback",
        trigger_dag_id="clipft_rollback",
        conf=going,  # type: ignore[arg-type]  # templated
        doc_md="The better version is champion, live and verified again.",
        **RUN,
    )
    suggested >> approve >> chosen
    none = nothing(suggested)
    chosen >> [dataset, going, none]
    going >> rollback
    dataset >> trained >> finetune
    # What fails is red where it failed, and there alone: `close` records it, and this makes it the run's state.
    ended = EmptyOperator(task_id="ended", trigger_rule="none_failed", doc_md="Whether all went well.")
    [finetune, rollback, none] >> close()
    [finetune, rollback, none] >> ended


clipft_readapt()

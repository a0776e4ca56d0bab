"""
### A dataset version becomes a served model

`plan` pins the data and start model and decides, with reasons, how this machine will train → `tune` looks for better values
by short trials, judged on the validation split, if the form asks for any → `finetune` trains a candidate in an MLflow run →
`blend` takes a point on the way from the start model that forgets less, if the form asks for one → `evaluate` scores it beside
the start model and the champion, once per **resolution** → `gate` compares →
`register` makes it challenger → `approve` waits for a person and `rollout` tries it on live traffic, both if the form says
so → `promote` makes it champion → `deploy` has the server load it → `verify` asks the server the questions whose answers were recorded at training.

* Every task may be killed at any moment: its retry resumes or finds its own work. One run never makes two model versions.
* The same form again finds the finished work and says so.
* A version that the server refuses, or that answers otherwise than recorded, puts the old champion back.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, get_current_context, task, task_group
from airflow.sdk.exceptions import AirflowFailException
from clipft_dag import ACCELERATOR, DEFAULTS, Approval, params, spec_of, stage


@dag(
    dag_id="clipft_finetune",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    params=params(
        "run",
        "model",
        "resolution",
        "objective",
        "tune",
        "train",
        "memory",
        "blend",
        "evaluate",
        "gate",
        "approval",
        "rollout",
        without=("source",),
    ),
    tags=["clipft", "training"],
    doc_md=__doc__,
    max_active_runs=2,
    render_template_as_native_obj=False,
)
def clipft_finetune() -> None:
    @task(doc_md="The sizes to evaluate at: one mapped task each.")
    def resolutions(params: dict[str, Any] | None = None) -> list[int]:
        return spec_of(params or {}).resolution.evaluate

    @task(**ACCELERATOR, doc_md="Device, precision, batch, memory: each with its reason.")
    def plan(params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("plan", params or {})

    @task_group(
        group_id="tune", tooltip="Short trainings with other values than the template's; skipped when tune.trials is 0."
    )
    def tune(planned: dict[str, Any]) -> Any:
        @task(**ACCELERATOR, doc_md="The study of this work: what varies, and how often it is tried.")
        def begin(planned: dict[str, Any], params: dict[str, Any] | None = None, run_id: str | None = None) -> dict[str, Any]:
            return stage("tune.begin", params or {}, planned=planned, dag_run=f"clipft_finetune/{run_id}")

        @task(doc_md="The trials' numbers: one mapped task each.")
        def numbers(begun: dict[str, Any]) -> list[int]:
            return list(begun["trials"])

        @task(**ACCELERATOR, map_index_template="{{ trial }}", doc_md="One trial, or its rest after a kill; at once when over.")
        def trial(
            number: int, planned: dict[str, Any], begun: dict[str, Any], params: dict[str, Any] | None = None
        ) -> dict[str, Any]:
            get_current_context()["trial"] = f"trial {number}"  # type: ignore[typeddict-unknown-key]
            return stage("tune.trial", params or {}, planned=planned, begun=begun, number=number)

        # Runs whatever became of the trials: the study knows, and says which were lost.
        @task(trigger_rule="all_done", doc_md="The best trial's values, or the template's, with the reason.")
        def decide(planned: Any, begun: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
            if not begun:
                raise AirflowFailException("There is nothing to decide: the study was not begun.")
            return stage("tune.decide", params or {}, planned=planned, begun=begun)

        begun = begin(planned)
        tried = trial.partial(planned=planned, begun=begun).expand(number=numbers(begun))
        decided = decide(planned, begun)
        tried >> decided
        return decided

    @task(**ACCELERATOR, doc_md="Train, or resume from the newest checkpoint, or find the finished run of the same work.")
    def finetune(
        planned: dict[str, Any], tuned: dict[str, Any], params: dict[str, Any] | None = None, run_id: str | None = None
    ) -> dict[str, Any]:
        return stage("finetune", params or {}, planned=planned, tuned=tuned, dag_run=f"clipft_finetune/{run_id}")

    @task(**ACCELERATOR, doc_md="The point between start and candidate that forgets less, if the form asks for one.")
    def blend(trained: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("blend", params or {}, run_id=trained["run_id"])

    @task(**ACCELERATOR, map_index_template="{{ size }}", doc_md="Candidate, start model and champion on the same test rows.")
    def evaluate(resolution: int, candidate: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        get_current_context()["size"] = f"{resolution} px"  # type: ignore[typeddict-unknown-key]
        return stage("evaluate", params or {}, run_id=candidate["run_id"], resolution=resolution)

    @task(doc_md="Rule, measured, limit, verdict. A candidate that fails is not registered.")
    def gate(candidate: dict[str, Any], scores: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("gate", params or {}, run_id=candidate["run_id"], evaluations=list(scores))

    @task(doc_md="Model version with multi-modal metadata; alias challenger.")
    def register(candidate: dict[str, Any], verdict: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("register", params or {}, run_id=candidate["run_id"], gate=verdict)

    @task(doc_md="Shadow, then canary, on live traffic, if the form asks for it.", execution_timeout=timedelta(hours=6))
    def rollout(registered: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("rollout", params or {}, version=registered["version"])

    @task(doc_md="Alias champion; the one before is kept as previous.")
    def promote(tried: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("promote", params or {}, version=tried["version"])

    @task(doc_md="The server loads the version, checks it against its recorded answers, and swaps.")
    def deploy(promoted: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("deploy", params or {}, version=promoted["version"], previous=promoted["previous"])

    @task(doc_md="The probe pairs, through the public API.")
    def verify(promoted: dict[str, Any], deployed: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("verify", params or {}, version=deployed["version"], previous=promoted["previous"])

    planned = plan()
    candidate = blend(finetune(planned, tune(planned)))
    scores = evaluate.partial(candidate=candidate).expand(resolution=resolutions())
    verdict = gate(candidate, scores)
    registered = register(candidate, verdict)
    approve = Approval(
        task_id="approve",
        required="{{ params['approval.required'] }}",
        subject="Promote {{ ti.xcom_pull(task_ids='register')['model'] }} version {{ ti.xcom_pull(task_ids='register')['version'] }}?",
        body="{{ ti.xcom_pull(task_ids='gate')['table'] }}",
        defaults="Reject",
        fail_on_reject=True,
        retries=0,
    )
    tried = rollout(registered)
    promoted = promote(tried)
    registered >> approve >> tried
    verify(promoted, deploy(promoted))


clipft_finetune()

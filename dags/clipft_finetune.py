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
* From `promote` to `verify` the run holds the domain's lease: another run of the domain waits before it promotes. When the
  champion became another since the gate, `promote` asks the gate again. `reconcile` gives the lease back, whatever happened.
"""

from airflow.sdk import TaskGroup, XComArg, dag, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException
from clipft_dag import (
    DEFAULTS,
    LATE,
    Approval,
    ChainTasks,
    Form,
    StageOutput,
    options_of,
    params,
    promote_to_verify,
    spec_of,
    stage,
)

# What a person reads before they decide: what it is about, where the reports are, the gate's table, what comes of either answer.
QUESTION = """\
{%- set gate, new = ti.xcom_pull(task_ids='gate'), ti.xcom_pull(task_ids='register') -%}
{%- set pages = [('Evaluation', gate['links']), ('Model version', new['links']), ('MLflow run', ti.xcom_pull(task_ids='finetune')['links'])] -%}
**{{ new['model'] }} version {{ new['version'] }}**, trained on {{ ti.xcom_pull(task_ids='plan')['dataset'] }}.
{% for name, links in pages if links.get(name) %}[{{ name }}]({{ links[name] }}){{ '' if loop.last else ' · ' }}{% endfor %}

{{ gate['table'] }}

*Approve* makes it the champion of {{ params['domain'] }}: the server answers with it, after the trial on live traffic if the form asks for
one, and {{ 'version ' ~ gate['opponent'] ~ ' is kept as previous' if gate['opponent'] else 'it is the first one' }}. *Reject* changes \
nothing: what serves goes on serving.
"""


@dag(
    dag_id="clipft_finetune",
    dag_display_name="2 · Fine-tuning (clipft_finetune)",
    description="From a dataset version to a model that is proven, registered, approved and live.",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    deadline=LATE,
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
    def resolutions(planned: StageOutput, params: Form | None = None) -> list[int]:
        return spec_of(params or {}).settled(planned.get("settled", {})).resolution.evaluated

    tasks = ChainTasks()
    planned = tasks.add("plan")
    tasks.outputs["tune"] = tune(planned)
    tasks.add("finetune")
    tasks.add("blend")
    sizes = resolutions(planned)  # type: ignore[arg-type]  # it takes an XComArg too
    tasks.add_each("evaluate", sizes, "{} px")
    tasks.add("gate")
    registered = tasks.add("register")
    approve = Approval(
        task_id="approve",
        required="{{ params['approval.required'] }}",
        subject="Promote {{ ti.xcom_pull(task_ids='register')['model'] }} version {{ ti.xcom_pull(task_ids='register')['version'] }}?",
        body=QUESTION,
        fail_on_reject=True,
    )
    registered >> approve >> tasks.add("rollout")
    promote_to_verify(tasks)


def tune(planned: XComArg) -> XComArg:
    """The tasks of the tune stage: the study, one mapped task a trial, the decision."""

    @task(doc_md="The study of this work: what varies, and how often it is tried.", **options_of("tune"))
    def begin(results: StageOutput, params: Form | None = None) -> StageOutput:
        return stage("tune.begin", params, **results)

    @task(doc_md="The trials' numbers: one mapped task each.")
    def numbers(results: StageOutput) -> list[int]:
        return list(results["begun"]["trials"])

    @task(
        map_index_template="{{ trial }}", doc_md="One trial, or its rest after a kill; at once when over.", **options_of("tune")
    )
    def trial(number: int, results: StageOutput, params: Form | None = None) -> StageOutput:
        get_current_context()["trial"] = f"trial {number}"  # type: ignore[typeddict-unknown-key]
        return stage("tune.trial", params, number=number, **results)

    # Runs whatever became of the trials: the study knows, and says which were lost.
    @task(trigger_rule="all_done", doc_md="The best trial's values, or the template's, with the reason.")
    def decide(results: StageOutput, params: Form | None = None) -> StageOutput:
        if not results["begun"]:
            raise AirflowSkipException("There is nothing to decide: the study was not begun.")
        return stage("tune.decide", params, **results)

    with TaskGroup("tune", tooltip="Short trainings with other values than the template's; skipped when tune.trials is 0."):
        begun = begin({"planned": planned})
        both = {"planned": planned, "begun": begun}
        tried = trial.partial(results=both).expand(number=numbers({"begun": begun}))
        decided = decide(both)
        tried >> decided
    return decided


clipft_finetune()

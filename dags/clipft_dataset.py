"""
### A source becomes a dataset version

`ingest` reads a table, a folder, `elpv:mono`, `molecules:2000` or `captures:<domain>` (the newest version's rows, and what the
server captured and people judged since) into shards; `validate` holds the rows against the domain's expectations (Great
Expectations) and links the **data report**; `version` adds, pushes, commits and tags them with DVC and git.

* A failing check stops the run and names the rows. A few bad rows are left out and listed in the report.
* Unchanged rows give the version that there already is.
* A version emits the asset `clipft-dataset-<domain>` with domain, version, counts and revision, once; `clipft_retrain` listens.
  A task that was killed after it made the version is tried again, and emits it then.
"""

from airflow.sdk import AssetAlias, dag, get_current_context, task
from clipft_dag import DEFAULTS, LATE, ChainTasks, Form, StageOutput, announced, dataset_asset, options_of, params, stage

from clipft_tasks.core.settings import settings
from clipft_tasks.stages.chain import CHAIN


@dag(
    dag_id="clipft_dataset",
    dag_display_name="1 · Data set (clipft_dataset)",
    description="Read a source, check every row, and make a dataset version of it.",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    deadline=LATE,
    params=params("run", "data", only=("model.start",), without=("dataset",), folded=("model.start",)),
    tags=["clipft", "data"],
    doc_md=__doc__,
    max_active_runs=4,
)
def clipft_dataset() -> None:
    tasks = ChainTasks()
    if (parts := settings().ingest_parts) > 1:

        @task(doc_md="Decode the images of one part of the source.", **options_of("ingest"))
        def decode(part: int, params: Form | None = None) -> StageOutput:
            return stage("ingest.part", params, part=part, of=parts)

        @task(doc_md=CHAIN["ingest"].summary, **options_of("ingest"))
        def ingest(decoded: list[StageOutput], params: Form | None = None) -> StageOutput:
            return tasks.run("ingest", params, {}, parts=list(decoded))

        @task(
            doc_md="Find out of one part of the rows what takes long: near-duplicates, tokens, names.", **options_of("validate")
        )
        def check(part: int, rows: StageOutput, params: Form | None = None) -> StageOutput:
            return stage("validate.part", params, staging=rows["staging"], part=part, of=parts)

        @task(doc_md=CHAIN["validate"].summary, **options_of("validate"))
        def validate(results: StageOutput, checked: list[StageOutput], params: Form | None = None) -> StageOutput:
            return tasks.run("validate", params, results, parts=list(checked))

        numbers = list(range(parts))
        tasks.outputs["ingest"] = rows = ingest(decode.expand(part=numbers))  # type: ignore[arg-type]  # a mapped task: all results
        checked = check.partial(rows=rows).expand(part=numbers)
        tasks.outputs["validate"] = validate(tasks.needed("validate"), checked)  # type: ignore[arg-type]  # likewise
    else:
        tasks.add("ingest")
        tasks.add("validate")

    alias = AssetAlias("clipft-dataset")

    @task(doc_md="DVC add, push; git commit, tag; asset event.", inlets=[alias], outlets=[alias], **options_of("version"))
    def version(results: StageOutput, params: Form | None = None) -> StageOutput:
        made, context = tasks.run("version", params, results), get_current_context()
        if made["new"] or not announced(made["revision"], context["inlet_events"][alias]):
            told = {k: made[k] for k in ("domain", "dataset", "revision", "rows", "counts")}
            context["outlet_events"][alias].add(dataset_asset(made["domain"]), extra=told)
        return made

    version(tasks.needed("version"))


clipft_dataset()

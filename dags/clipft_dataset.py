"""
### A source becomes a dataset version

`ingest` reads a table, a folder, `elpv:mono`, `molecules:2000` or `captures:<domain>` (the newest version's rows, and what the
server captured and people judged since) into shards; `validate` holds the rows against the domain's expectations (Great
Expectations) and links the **data report**; `version` adds, pushes, commits and tags them with DVC and git.

* A failing check stops the run and names the rows. A few bad rows are left out and listed in the report.
* Unchanged rows give the version that there already is.
* A version emits the asset `clipft-dataset-<domain>` with domain, version, counts and revision; `clipft_retrain` listens.
"""

from typing import Any

from airflow.sdk import AssetAlias, dag, task
from clipft_dag import DEFAULTS, dataset_asset, params, stage


@dag(
    dag_id="clipft_dataset",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    params=params("run", "data", only=("model.start",), without=("dataset",)),
    tags=["clipft", "data"],
    doc_md=__doc__,
    max_active_runs=4,
)
def clipft_dataset() -> None:
    @task(doc_md="Read the source. Rows that cannot be taken are listed with their reason.")
    def ingest(params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("ingest", params or {})

    @task(doc_md="Hold the rows against the domain's expectations. The report is linked above.")
    def validate(staged: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("validate", params or {}, staging=staged["staging"])

    @task(doc_md="DVC add, push; git commit, tag; asset event.", outlets=[AssetAlias("clipft-dataset")])
    def version(
        staged: dict[str, Any], checked: dict[str, Any], params: dict[str, Any] | None = None, outlet_events: Any = None
    ) -> dict[str, Any]:
        made = stage("version", params or {}, staging=staged["staging"])
        if made["new"]:
            told = {k: made[k] for k in ("domain", "dataset", "revision", "rows", "counts")}
            outlet_events[AssetAlias("clipft-dataset")].add(dataset_asset(made["domain"]), extra=told)
        return made

    staged = ingest()
    version(staged, validate(staged))


clipft_dataset()

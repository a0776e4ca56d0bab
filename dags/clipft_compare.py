"""
### Models beside one another, in one page

Any set of runs, versions or domains: every metric with its interval at every image size, paired tests corrected for being
many, confusion matrices, images that changed from wrong to right and back, parameters that differ, cost, lineage. The page
opens offline and is kept, with its JSON, in MLflow's experiment `clipft-compare`.

* `industrial` stands for its champion and its challenger; `industrial@previous`, `models:/clipft-industrial/3` and MLflow run
  ids name one model each.
* Two models are tested only on the same test rows. Where theirs differ the run is refused with the reason: set *dataset* to
  `newest` to ask all about the same rows, or *unpaired* to see the metrics without a test.
* Models of different domains are never tested against each other; their gains over their start models stand side by side.
"""

from airflow.sdk import Param, dag, task
from clipft_dag import DEFAULTS, LATE, Form, StageOutput, options_of, params, stage

HOW = "How"


@dag(
    dag_id="clipft_compare",
    dag_display_name="3 · Comparison (clipft_compare)",
    description="Put models beside one another, in one page.",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    deadline=LATE,
    params={
        "models": Param(
            type="array", items={"type": "string"}, minItems=1, title="Models",
            description_md="one a line: a domain (its champion and challenger), `domain@alias`, `models:/name/version`, or an MLflow run id",
        ),
        "dataset": Param(
            None, type=["string", "null"], title="Dataset",
            description_md="whose test rows: `newest` of the versions trained on, or one (`industrial/v2`); empty: each model's own",
        ),
        "sizes": Param(
            None, type=["array", "null"], items={"type": "integer"}, title="Sizes", section=HOW,
            description="image sides; empty: all that every model of a domain was evaluated at",
        ),
        "metric": Param(
            None, type=["string", "null"], title="Metric", section=HOW,
            description="the metric that is tested, such as macro_f1; empty: the domain's gate.metric",
        ),
        "unpaired": Param(
            False, type="boolean", title="Unpaired", section=HOW, description="go on without a test where test rows differ",
        ),
        "watts": Param(
            None, type=["number", "null"], exclusiveMinimum=0, title="Watts", section=HOW,
            description="power of the training device, for the energy estimate; empty: its own meter, else an assumption by its kind",
        ),
        **params(only=("evaluate.bootstrap", "evaluate.batch", "memory.device")),
    },
    tags=["clipft", "evaluation"],
    doc_md=__doc__,
    max_active_runs=2,
)  # fmt: skip
def clipft_compare() -> None:
    @task(doc_md="Score, test, and write the page; the link *Comparison* opens it.", **options_of("compare"))
    def compare(params: Form | None = None) -> StageOutput:
        given = dict(params or {})
        own = {name: given.pop(name) for name in ("models", "dataset", "sizes", "metric", "unpaired", "watts")}
        return stage("compare", given, **{name: value for name, value in own.items() if value is not None})

    compare()


clipft_compare()

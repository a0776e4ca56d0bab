"""
### Retraining by the clock and by new data

Runs every Monday at 03:00 UTC, and whenever a new dataset version appears (asset `clipft-dataset-<domain>`). It starts
`clipft_finetune` for each domain concerned, with the domain's own defaults. A domain whose data did not change costs
seconds, since the finished work is found again. A version that a re-adaptation made of captures is left to that re-adaptation.

Paused when first seen: switch it on to let models follow their data without anyone asking.
"""

from functools import reduce
from operator import or_

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, get_current_context, task
from clipft_dag import DATASET_ASSETS, OWN_FORM, Form, params

from clipft_tasks.domains import domain_names

any_dataset = reduce(or_, DATASET_ASSETS.values())


@dag(
    dag_id="clipft_retrain",
    dag_display_name="7 · Retraining (clipft_retrain)",
    description="Fine-tune again on Mondays and when there is new data.",
    schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 3 * * 1", timezone="UTC"), assets=any_dataset),
    catchup=False,
    is_paused_upon_creation=True,
    default_args=OWN_FORM,
    params={
        "domains": Param(
            None,
            type=["array", "null"],
            items={"type": "string", "enum": domain_names()},
            examples=domain_names(),
            title="Domains",
            description="whom to retrain; empty: those with new data, or by the clock all that have a data set",
        ),
        **params("model", "approval"),
    },
    tags=["clipft", "training"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_retrain() -> None:
    @task(doc_md="Which domains, and on which version of their data.")
    def due(params: Form | None = None) -> list[dict[str, Form]]:
        from clipft_tasks.data import versioning

        given = dict(params or {})
        asked = given.pop("domains", None)
        events = [e for found in get_current_context()["triggering_asset_events"].values() for e in found]
        fresh = {e.extra.get("dataset", ""): e.extra["domain"] for e in events if "domain" in e.extra}
        known = {d: found for d in asked or sorted({*fresh.values()}) or domain_names() if (found := versioning.versions(d))}
        if events and not asked:  # what a re-adaptation made of captures it trains on itself
            own = {version.tag for found in known.values() for version in found if version.card.captured}
            known = {d: found for d, found in known.items() if any(fresh[tag] == d for tag in fresh.keys() - own)}
        # Always the newest version: events may be many, old, and in any order.
        return [{"conf": {**given, "domain": d, "dataset": found[-1].tag}} for d, found in known.items()]

    TriggerDagRunOperator.partial(
        task_id="finetune", trigger_dag_id="clipft_finetune", wait_for_completion=False
    ).expand_kwargs(due())


clipft_retrain()

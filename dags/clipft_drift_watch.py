"""
### Drift is seen

Started by the asset `clipft-drift` (a watcher polls Prometheus once for all domains), by Alertmanager's callback, or by hand.
`watch` looks for itself what drifts now; `triage` is the one gate behind all three: one incident at a time per domain, a
cool-down after it, and a circuit breaker after repeated failures. What is admitted starts `clipft_readapt`.

A version that came of an incident stays on probation for a day. When feedback or failing requests show that it is worse
than the version before, `clipft_readapt` goes back by itself, once; the second time it asks, and the breaker opens.

Where there is no Prometheus, the same watcher and sensor read the server's own metrics.
"""

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, AssetWatcher, Param, dag, task
from clipft_dag import OWN_FORM, Form, Options, StageOutput, stage
from clipft_drift import PrometheusDriftSensor, PrometheusDriftTrigger

from clipft_tasks.contracts.drift import DriftWatchRequest, ReadaptRequest
from clipft_tasks.contracts.stages import TriageResult
from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names

watcher = AssetWatcher(
    name="clipft-drift-watcher", trigger=PrometheusDriftTrigger(settings().prometheus_url, settings().server_url)
)
drift = Asset(name="clipft-drift", uri="clipft://drift", group="clipft", watchers=[watcher])


@dag(
    dag_id="clipft_drift_watch",
    dag_display_name="6 · Drift watch (clipft_drift_watch)",
    description="Look whether what the server sees has drifted, and start a re-adaptation.",
    schedule=[drift],
    catchup=False,
    default_args=OWN_FORM | {"retries": 2},
    params={
        "domains": Param(
            None, type=["array", "null"], items={"type": "string", "enum": domain_names()}, examples=domain_names(), title="Domains",
            description="whom to look at; empty: all",
        ),
        "wait_minutes": Param(
            0, type="number", minimum=0, maximum=1440, title="Wait minutes",
            description="how long to wait for drift, without holding a worker; 0 looks once",
        ),
        "cool_down_minutes": Param(
            60, type="number", minimum=0, maximum=10080, title="Cool down minutes",
            description="after an incident of a domain the next is taken no sooner",
        ),
        "approval": Param(
            True, type="boolean", title="Approval",
            description="whether a person decides before a model re-adapts; going back asks only where the domain's spec requires it",
        ),
    },
    tags=["clipft", "drift"],
    doc_md=__doc__,
    max_active_runs=8,
    render_template_as_native_obj=True,
)  # fmt: skip
def clipft_drift_watch() -> None:
    watch = PrometheusDriftSensor(
        task_id="watch",
        domains="{{ params.domains }}",
        wait_minutes="{{ params.wait_minutes }}",
        doc_md="What drifts now: domain, version, signals.",
    )

    @task(doc_md="Which of it is acted on, and why not the rest.", max_active_tis_per_dag=1)
    def triage(alerts: list[StageOutput], params: Form | None = None, run_id: str | None = None) -> list[Options]:
        asked, runs = DriftWatchRequest.of_form(params or {}), list[Options]()
        for domain in [d for d in domain_names() if any(a["domain"] == d for a in alerts)]:
            found = TriageResult.model_validate(
                stage(
                    "triage",
                    {"domain": domain},
                    alerts=[a for a in alerts if a["domain"] == domain],
                    cool_down=60 * asked.cool_down_minutes,
                    dag_run=f"clipft_drift_watch/{run_id}",
                )
            )
            if found.admitted:
                approval = found.approval or (asked.approval and not found.rollback)
                request = ReadaptRequest(domain=domain, incident=found.incident, signals=found.signals, approval=approval)
                name = f"{'undo' if found.rollback else 'drift'}__{found.incident}"
                runs.append({"trigger_run_id": name, "conf": request.to_conf()})
        return runs

    TriggerDagRunOperator.partial(
        task_id="readapt", trigger_dag_id="clipft_readapt", wait_for_completion=False, skip_when_already_exists=True
    ).expand_kwargs(triage(watch.output))  # type: ignore[arg-type]  # templated


clipft_drift_watch()

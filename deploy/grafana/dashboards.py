"""Grafana's dashboards, as code: python -m deploy.grafana.dashboards writes the JSON beside this file.

service   rate, errors, latency, batches, queue, saturation
model     drift, alignment, live accuracy, versions
pipeline  runs and tasks of Airflow, from its own StatsD metrics
"""

from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from clipft_tasks.drift.image_statistics import IMAGE_STATISTICS
from clipft_tasks.drift.signals import window_metrics

Query = tuple[str, str]  # PromQL, legend
Panel = tuple[str, str, list[Query]]  # title, unit, queries


def pooled(name: str) -> str:
    """A metric of the windows (see `drift.signals`) over any number of replicas: each counts by the rows that it is a mean over."""
    metric = window_metrics()[name]
    gauge, rows = f"clipft_{metric.prometheus}", f"clipft_window_items{{kind='{metric.pooled_by}'}}"
    return f"sum by (domain, version) ({gauge} * ignoring (kind) {rows}) / sum by (domain, version) ({rows} and ignoring (kind) {gauge})"


SERVICE: list[Panel] = [
    ("Requests a second", "reqps", [("sum by (route, status) (rate(clipft_requests_total[1m]))", "{{route}} {{status}}")]),
    ("Share of requests that fail", "percentunit", [("clipft:error_ratio", "{{domain}}")]),
    ("Latency, 95th percentile", "s", [("clipft:request_seconds:p95", "{{route}}")]),
    ("Refused images and texts a second", "ops", [("sum by (reason) (rate(clipft_refused_items_total[1m]))", "{{reason}}")]),
    ("Items a forward pass", "short", [
        ("sum by (kind) (rate(clipft_batch_items_sum[1m])) / sum by (kind) (rate(clipft_batch_items_count[1m]))", "{{kind}}")
    ]),
    ("Share of time in forward passes", "percentunit", [("sum by (kind) (rate(clipft_inference_seconds_sum[1m]))", "{{kind}}")]),
    ("Jobs that wait", "short", [("sum by (instance) (clipft_queue_jobs)", "{{instance}}")]),
    ("Memory and CPU", "bytes", [("process_resident_memory_bytes{job='clipft-server'}", "resident {{instance}}"),
                                 ("rate(process_cpu_seconds_total{job='clipft-server'}[1m]) * 1e9", "CPU {{instance}} (1 GB = one core)")]),
]  # fmt: skip

MODEL: list[Panel] = [
    ("Drift over its limit", "short", [("clipft:drift_ratio", "{{domain}} v{{version}} {{signal}}")]),
    ("Told from the reference (.5 = same)", "short", [
        (pooled("image_auc"), "{{domain}} v{{version}} images"),
        (pooled("text_auc"), "{{domain}} v{{version}} texts"),
    ]),
    ("Answers with feedback that were right", "percentunit", [
        ("clipft:live_accuracy_ratio", "{{domain}} v{{version}}"), ("clipft:live_accuracy_low_ratio", "low"),
        ("clipft:live_accuracy_high_ratio", "high"), ("max by (domain, version) (clipft_baseline_accuracy_ratio)", "at training {{domain}}"),
        (pooled("accuracy_estimate"), "estimate without labels {{domain}}"),
    ]),
    ("Alignment of images with their own texts", "short", [
        (pooled("alignment"), "{{domain}} v{{version}}"),
    ]),
    ("Modality gap", "short", [(pooled("modality_gap"), "{{domain}} v{{version}}"),
                               ("max by (domain, version) (clipft_reference_modality_gap)", "reference {{domain}}")]),
    ("Predicted classes a second", "ops", [("sum by (domain, label) (rate(clipft_predictions_total[5m]))", "{{domain}} {{label}}")]),
    ("Best similarity and its lead, median", "short", [
        ("histogram_quantile(0.5, sum by (le, domain) (rate(clipft_similarity_top_bucket[5m])))", "{{domain}} best"),
        ("histogram_quantile(0.5, sum by (le, domain) (rate(clipft_similarity_margin_bucket[5m])))", "{{domain}} lead"),
    ]),
    ("What images look like, median", "short", [
        (f"histogram_quantile(0.5, sum by (le, domain) (rate(clipft_image_{s.prometheus}_bucket[5m])))", f"{{{{domain}}}} {s.name}")
        for s in IMAGE_STATISTICS if s.prometheus and not s.log2  # pixels would hide the others
    ]),
    ("Rows in the window", "short", [("clipft:window_items", "{{domain}} {{kind}}")]),
    ("Images of another kind, and outside the reference's range", "percentunit", [
        (pooled("none_of_these"), "{{domain}} none of these"), (pooled("out_of_range"), "{{domain}} out of range"),
    ]),
    ("Live versions", "short", [("sum by (domain, version, dataset) (clipft_model_info)", "{{domain}} v{{version}} on {{dataset}}")]),
    ("Feedback and captures", "short", [("sum by (domain, verdict) (clipft_feedback_total)", "{{domain}} {{verdict}}"),
                                        ("sum by (domain, outcome) (clipft_captures_total)", "{{domain}} kept {{outcome}}"),
                                        ("sum by (domain, what) (clipft_side_effect_failures_total)", "{{domain}} {{what}} missed")]),
]  # fmt: skip

PIPELINE: list[Panel] = [
    # Totals: a DAG's first run makes its series, and `increase` would not see it.
    ("Runs since Airflow started", "short", [
        ("sum by (dag_id) (airflow_dagrun_duration_success_count)", "{{dag_id}} succeeded"),
        ("sum by (dag_id) (airflow_dagrun_duration_failed_count) or 0 * sum by (dag_id) (airflow_dagrun_duration_success_count)",
         "{{dag_id}} failed"),
    ]),
    ("Mean duration of a run", "s", [
        ("sum by (dag_id) (airflow_dagrun_duration_success_sum) / sum by (dag_id) (airflow_dagrun_duration_success_count)",
         "{{dag_id}}"),
    ]),
    ("Tasks that ended a minute", "short", [("sum by (state) (rate(airflow_ti_finish[5m])) * 60", "{{state}}")]),
    ("The accelerator's pool", "short", [
        ("airflow_pool_running_slots{pool_name='accelerator'}", "running"), ("airflow_pool_queued_slots{pool_name='accelerator'}", "queued"),
        ("airflow_pool_open_slots{pool_name='accelerator'}", "free"),
    ]),
    ("Heartbeats a minute", "short", [("rate(airflow_scheduler_heartbeat[1m]) * 60", "scheduler"),
                                      ("rate(airflow_triggerer_heartbeat[1m]) * 60", "triggerer")]),
    ("Alerts that fire", "short", [("count by (alertname, domain) (ALERTS{alertstate='firing'})", "{{alertname}} {{domain}}")]),
]  # fmt: skip

DASHBOARDS = {
    "service": ("clipft: service", SERVICE),
    "model": ("clipft: models", MODEL),
    "pipeline": ("clipft: pipeline", PIPELINE),
}
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")


def build(name: str) -> str:
    """A dashboard's JSON, the same for the same code."""
    title, panels = DASHBOARDS[name]
    board = dashboard.Dashboard(title).uid(f"clipft-{name}").tags(["clipft"]).refresh("10s").time("now-1h", "now")
    for panel_title, unit, queries in panels:
        kind = stat.Panel() if panel_title == "Live versions" else timeseries.Panel()
        if isinstance(kind, timeseries.Panel):
            from grafana_foundation_sdk.builders.common import VizLegendOptions

            legend = VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
            kind = kind.legend(legend)
        kind = kind.title(panel_title).unit(unit).datasource(SOURCE).span(12).height(8)
        for number, (query, legend_text) in enumerate(queries):
            target = prometheus.Dataquery().expr(query).legend_format(legend_text).ref_id(chr(65 + number)).datasource(SOURCE)
            kind = kind.with_target(target)
        board = board.with_panel(kind)
    return str(JSONEncoder(sort_keys=True, indent=1).encode(board.build())) + "\n"


def main() -> None:
    for name in DASHBOARDS:
        (Path(__file__).parent / f"{name}.json").write_text(build(name))


if __name__ == "__main__":
    main()

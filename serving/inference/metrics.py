"""What Prometheus reads. Names and units follow its conventions; every histogram is additive over replicas."""

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

from clipft_tasks.drift.image_statistics import IMAGE_STATISTICS
from clipft_tasks.drift.signals import ROW_KINDS, window_metrics
from clipft_tasks.drift.window import DriftMetrics

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
# Finest from 0 to 1, where cosines lie; distances are negative, and inner products have no end.
LEAD = (*(round(x * 0.05, 2) for x in range(0, 21)), 2.0, 5.0, 10.0)
SIMILARITY = (-10.0, -5.0, -2.0, -1.0, -0.5, -0.2, -0.1, *LEAD)


class Metrics:
    """One set for each application, so that two in one process do not meet in a global registry."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "clipft_requests_total", "Requests by route, domain and status.", ["route", "domain", "status"], registry=registry
        )
        self.latency = Histogram(
            "clipft_request_seconds", "Time from the first byte in to the last byte out.", ["route"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.items = Counter("clipft_items_total", "Images and texts encoded.", ["domain", "kind"], registry=registry)
        self.remembered = Counter(
            "clipft_remembered_total", "Texts and classes asked for: found among those asked before, or embedded.",
            ["kind", "outcome"], registry=registry,
        )  # fmt: skip
        self.refused = Counter(
            "clipft_refused_items_total", "Images and texts refused, by reason.", ["reason"], registry=registry
        )
        self.batch = Histogram(
            "clipft_batch_items", "Items per forward pass.", ["kind"], buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.inference = Histogram(
            "clipft_inference_seconds", "Time of a forward pass.", ["kind"], buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("clipft_queue_jobs", "Jobs that wait for the inference thread.", registry=registry)
        self.margin = Histogram(
            "clipft_similarity_margin", "Similarity of the best class or text minus that of the second best.",
            ["domain", "version"], buckets=LEAD, registry=registry,
        )  # fmt: skip
        self.top = Histogram(
            "clipft_similarity_top",
            "Similarity of the best class or text.",
            ["domain", "version"],
            buckets=SIMILARITY,
            registry=registry,
        )
        # What images look like before any model: the window says how far that moved, these add up over replicas.
        self.appearance = {
            s.name: Histogram(
                f"clipft_image_{s.prometheus}", s.help, ["domain", "version"], buckets=s.buckets, registry=registry
            )
            for s in IMAGE_STATISTICS
            if s.prometheus
        }
        self.predictions = Counter(
            "clipft_predictions_total", "Answers of the classifier over the model's own classes.",
            ["domain", "version", "label"], registry=registry,
        )  # fmt: skip
        self.model = Gauge(
            "clipft_model_info",
            "1 for the live version of each domain.",
            ["domain", "version", "run_id", "dataset"],
            registry=registry,
        )
        self.loaded = Gauge(
            "clipft_model_loaded_timestamp_seconds", "When the live version went live.", ["domain"], registry=registry
        )
        self.deployments = Counter(
            "clipft_deployments_total", "Attempts to change the live version.", ["domain", "outcome"], registry=registry
        )

        of_version = ["domain", "version"]
        self.drift = Gauge(
            "clipft_drift_ratio", "A signal of the window over its limit; above 1 is drift.", [*of_version, "signal"],
            registry=registry,
        )  # fmt: skip
        self.drift_items = Gauge(
            "clipft_drift_items", "Rows behind a signal: what it weighs among replicas.", [*of_version, "signal"],
            registry=registry,
        )  # fmt: skip
        self.window = Gauge(
            "clipft_window_items", "Rows behind the window's metrics.", [*of_version, "kind"], registry=registry
        )
        self.values = {
            metric.name: Gauge(f"clipft_{metric.prometheus}", metric.description, of_version, registry=registry)
            for metric in window_metrics().values()
        }
        self.baseline = Gauge(
            "clipft_baseline_accuracy_ratio", "Accuracy on held-out rows when the version was trained.", of_version,
            registry=registry,
        )  # fmt: skip
        self.measured = Gauge(
            "clipft_drift_measured", "Whether the version has a usable reference.", of_version, registry=registry
        )
        self.measuring = Histogram(
            "clipft_drift_measuring_seconds", "Time to measure one window.", buckets=SECONDS, registry=registry
        )
        self.feedback = Counter(
            "clipft_feedback_total", "Answers whose true label is known.", [*of_version, "verdict"], registry=registry
        )
        self.captures = Counter(
            "clipft_captures_total", "Requests kept for labeling, or why not.", ["domain", "outcome"], registry=registry
        )
        self.side_effect_failures = Counter(
            "clipft_side_effect_failures_total", "Answers that the window, feedback or captures failed to take note of.",
            ["domain", "what"], registry=registry,
        )  # fmt: skip
        self._signals: dict[tuple[str, str], set[str]] = {}

    def observe_scores(self, domain: str, version: str, scores: np.ndarray) -> None:
        """Similarities of images with classes or texts, (n, c): the best one, and its lead over the second."""
        for row in np.sort(scores, axis=1):
            self.top.labels(domain, version).observe(float(row[-1]))
            if len(row) > 1:
                self.margin.labels(domain, version).observe(float(row[-1] - row[-2]))

    def observe_appearance(self, domain: str, version: str, appearance: np.ndarray) -> None:
        """Image statistics, (n, 5)."""
        for column, statistic in zip(appearance.T, IMAGE_STATISTICS, strict=True):
            if statistic.prometheus:
                histogram = self.appearance[statistic.name].labels(domain, version)
                for value in (np.exp2(column) if statistic.log2 else column).tolist():
                    histogram.observe(value)

    def publish(self, domain: str, version: str, measured: DriftMetrics) -> None:
        """Set the gauges of a window; what it no longer says is taken away rather than left standing."""
        for name, ratio in measured.drift.items():
            self.drift.labels(domain, version, name).set(ratio)
            self.drift_items.labels(domain, version, name).set(measured.rows[name])
        before = self._signals.get((domain, version), set())
        for name in before - measured.drift.keys():
            self.drift.remove(domain, version, name)
            self.drift_items.remove(domain, version, name)
        self._signals[domain, version] = set(measured.drift)
        for name, gauge in self.values.items():
            if name in measured.values:
                gauge.labels(domain, version).set(measured.values[name])
            else:
                _remove(gauge, domain, version)
        for kind in ROW_KINDS:
            self.window.labels(domain, version, kind).set(measured.count(kind))

    def forget(self, domain: str, version: str) -> None:
        """A version is no longer live: its window's metrics end."""
        self.publish(domain, version, DriftMetrics({}, {}, 0, 0, 0))
        for kind in ROW_KINDS:
            _remove(self.window, domain, version, kind)
        for gauge in (self.baseline, self.measured):
            _remove(gauge, domain, version)


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        pass

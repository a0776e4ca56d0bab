"""What Prometheus reads. Names and units follow its conventions; every histogram is additive over replicas."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0)
COSINE = tuple(round(x * 0.05, 2) for x in range(0, 21))


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
        self.items = Counter("clipft_items_total", "Pictures and texts encoded.", ["domain", "kind"], registry=registry)
        self.refused = Counter(
            "clipft_refused_items_total", "Pictures and texts refused, by reason.", ["reason"], registry=registry
        )
        self.batch = Histogram(
            "clipft_batch_items", "Items per forward pass.", ["kind"], buckets=(1, 2, 4, 8, 16, 32, 64, 128), registry=registry
        )
        self.inference = Histogram(
            "clipft_inference_seconds", "Time of a forward pass.", ["kind"], buckets=SECONDS, registry=registry
        )
        self.queue = Gauge("clipft_queue_jobs", "Jobs that wait for the inference thread.", registry=registry)
        self.margin = Histogram(
            "clipft_similarity_margin", "Cosine of the best class or text minus that of the second best.",
            ["domain", "version"], buckets=COSINE, registry=registry,
        )  # fmt: skip
        self.top = Histogram(
            "clipft_similarity_top",
            "Cosine of the best class or text.",
            ["domain", "version"],
            buckets=COSINE,
            registry=registry,
        )
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

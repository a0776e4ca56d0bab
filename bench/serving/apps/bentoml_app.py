"""BentoML: its own batching. `bentoml serve bench.serving.apps.bentoml_app:Service --port PORT`."""

import bentoml

from bench.serving.apps.tower import Tower


@bentoml.service(traffic={"timeout": 120, "max_concurrency": 512})
class Service:
    def __init__(self) -> None:
        self.tower = Tower()

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def images(self, image: list[str]) -> list[list[float]]:
        return self.tower.images([self.tower.decode(one) for one in image])

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=60_000)  # type: ignore[untyped-decorator]
    def texts(self, text: list[str]) -> list[list[float]]:
        return self.tower.texts(text)

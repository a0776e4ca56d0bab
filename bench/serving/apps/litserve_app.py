"""LitServe: batches of at most 8, or of what came within 4 ms. `python -m bench.serving.apps.litserve_app PORT WORKERS`."""

import sys

import litserve
import torch

from bench.serving.apps.tower import Tower

Item = torch.Tensor | str


class Api(litserve.LitAPI):  # type: ignore[misc]  # it has no types
    """An item is an image or a text; a batch may hold both."""

    def setup(self, device: str) -> None:
        self.tower = Tower()

    def decode_request(self, request: dict[str, str]) -> Item:
        return self.tower.decode(request["image"]) if request.get("image") else request["text"]

    def batch(self, inputs: list[Item]) -> list[Item]:
        return inputs

    def predict(self, inputs: list[Item]) -> list[list[float]]:
        shown = [item for item in inputs if not isinstance(item, str)]
        said = [item for item in inputs if isinstance(item, str)]
        images = iter(self.tower.images(shown) if shown else [])
        texts = iter(self.tower.texts(said) if said else [])
        return [next(texts) if isinstance(item, str) else next(images) for item in inputs]

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def encode_response(self, output: list[float]) -> list[float]:
        return output


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    api = Api(max_batch_size=8, batch_timeout=0.004)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, timeout=120).run(
        port=port, generate_client_file=False
    )

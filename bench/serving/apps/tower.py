"""The tower of a package with plain open_clip and torch: all that the other servers share. Needs nothing of clipft."""

import base64
import io
import os

import open_clip
import torch
from PIL import Image


class Tower:
    """Images and texts to unit vectors. The working directory becomes the package, where its text tower looks for its files."""

    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
        os.chdir(os.environ["BENCH_PACKAGE"])
        self.model, _, self.preprocess = open_clip.create_model_and_transforms("local-dir:.")
        self.tokenizer = open_clip.get_tokenizer("local-dir:.")
        self.model.eval()

    def decode(self, image: str) -> torch.Tensor:
        """A file in base64 -> the tower's input, (3, side, side)."""
        decoded: torch.Tensor = self.preprocess(Image.open(io.BytesIO(base64.b64decode(image))))
        return decoded

    def images(self, decoded: list[torch.Tensor]) -> list[list[float]]:
        with torch.inference_mode():
            return _lists(self.model.encode_image(torch.stack(decoded), normalize=True))

    def texts(self, texts: list[str]) -> list[list[float]]:
        with torch.inference_mode():
            return _lists(self.model.encode_text(self.tokenizer(texts), normalize=True))


def _lists(vectors: torch.Tensor) -> list[list[float]]:
    rows: list[list[float]] = vectors.tolist()
    return rows

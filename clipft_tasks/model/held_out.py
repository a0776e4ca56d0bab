"""What a model says of the validation rows: baseline accuracy, calibration, and what is none of its images come from these."""

from dataclasses import dataclass

import numpy as np
import torch

from ..data.decoded_cache import decoded
from ..data.versioning import Dataset
from .clip import Clip

ROWS = 1000  # at most, spread over the split


@dataclass(frozen=True)
class HeldOut:
    """Different images of the validation split, as a model sees them.

    Args:
        image: embeddings (n, d).
        similarity: with the classes (n, c); (n, 0) without two classes.
        truth: class number (n,); -1 where the row has no label.
        groups: of each row (n,); an image without a group is one of its own.
    """

    image: np.ndarray
    similarity: np.ndarray
    truth: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    @property
    def labeled(self) -> "HeldOut":
        """The rows whose class is known."""
        known = self.truth >= 0
        return HeldOut(self.image[known], self.similarity[known], self.truth[known], self.groups[known])

    @classmethod
    def of(cls, clip: Clip, dataset: Dataset, side: int, batch: int = 64) -> "HeldOut":
        """Ask a model about the validation rows.

        Args:
            side: the size that will be served.
        """
        frame = dataset.split("val")
        images = decoded(dataset, frame, side, "val", gray_bits=clip.prepared().gray_bits, aspect=clip.aspect)
        first = np.flatnonzero(~frame["sha256"].duplicated().to_numpy())
        rows = first[np.linspace(0, len(first) - 1, min(ROWS, len(first))).astype(int)]
        classes = dataset.classes if len(dataset.classes) > 1 else []
        some = frame.iloc[rows]
        number = {name: i for i, name in enumerate(classes)}
        found = [np.zeros((0, clip.embed_dim), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(rows), batch):
                found.append(clip.encode_images(images.take(rows[start : start + batch])).cpu().numpy())
            image = np.concatenate(found)
            similarity = np.zeros((len(rows), 0), np.float32)
            if classes:
                texts = clip.class_embeddings(classes)
                similarity = clip.similarity(torch.from_numpy(image).to(clip.device), texts).cpu().numpy()
        return cls(
            image,
            similarity,
            truth=np.array([number.get(label, -1) for label in some["label"]], dtype=int),
            groups=np.array([g or image_id for g, image_id in zip(some["group"], some["sha256"], strict=True)], dtype=str),
        )

"""A version that answers (the model, its card, where it comes from), and what it says about images."""

import copy
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from clipft_tasks.contracts.model_card import ModelCard
from clipft_tasks.drift.reference import Reference
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.similarity import Similarity


@dataclass
class Live:
    """A version that answers."""

    domain: str
    version: str
    clip: Clip
    card: ModelCard
    lineage: dict[str, str]
    since: float = field(default_factory=time.time)
    class_texts: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def side(self) -> int:
        return self.card.resolutions.serve

    @property
    def own_class_texts(self) -> np.ndarray | None:
        """Class vectors (c, d) of the classes that the model was trained on; None when it has none to tell apart."""
        return self.class_texts.get(tuple(self.card.classes)) if len(self.card.classes) > 1 else None

    @cached_property
    def temperature_scale(self) -> float:
        """What a similarity is multiplied with before a softmax: the model's learned inverse temperature."""
        return float(self.clip.model.logit_scale.detach().exp())

    @property
    def dimensions(self) -> list[int]:
        """Lengths that embeddings may be cut to: those that the model was trained for (Kusupati et al. 2022,
        https://arxiv.org/abs/2205.13147)."""
        return sorted(d for d in self.card.dimensions if d <= self.clip.embed_dim)

    @cached_property
    def _similarity(self) -> Similarity:
        """The model's similarity on the CPU, so that any thread may compare; first asked for in the inference thread."""
        return copy.deepcopy(self.clip.similarity).cpu()

    def cut(self, embeddings: np.ndarray, dimensions: int) -> np.ndarray:
        """The first `dimensions` numbers of embeddings (n, d), as embeddings of their own."""
        with torch.inference_mode():
            return self._similarity.prefix(torch.from_numpy(embeddings), dimensions).numpy()

    def similarity(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Embeddings (n, d) of images and (m, d) of texts -> how alike they are, (n, m)."""
        return self._similarity.compare(image, text)

    @property
    def headers(self) -> dict[str, str]:
        """Where an answer comes from."""
        return {
            "X-Clipft-Domain": self.domain,
            "X-Clipft-Model-Version": self.version,
            "X-Clipft-Run-Id": self.lineage.get("run_id", ""),
            "X-Clipft-Dataset": self.lineage.get("dataset", ""),
            "X-Clipft-Dag-Run": self.lineage.get("dag_run", ""),
        }


@dataclass(frozen=True)
class Ranking:
    """What a version says about a request's images.

    Args:
        image: (n, d) embeddings; looks: (n, 5), see `appearance`, where the window wants that; scores: (n, c) similarity with each class.
    """

    live: Live
    classes: list[str]
    image: np.ndarray
    looks: np.ndarray | None
    scores: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The number of each image's best class, (n,)."""
        return self.scores.argmax(axis=1)

    @property
    def labels(self) -> list[str]:
        return [self.classes[i] for i in self.best]

    @cached_property
    def odds(self) -> np.ndarray:
        """Softmax over the classes at the model's temperature, (n, c)."""
        logits = self.scores * self.live.temperature_scale
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

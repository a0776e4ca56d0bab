"""A version that is loaded (the model, what its card says, where it comes from), and its ranking of classes for images."""

import copy
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from clipft_tasks.contracts.calibration import Calibration
from clipft_tasks.drift.reference import Reference
from clipft_tasks.model.backends.base import TowerKind
from clipft_tasks.model.backends.choice import Choice
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.group_quantile import can_cover, group_quantile
from clipft_tasks.model.similarity import Similarity

from .vector_memory import VectorMemory

REMEMBERED = 16 * 2**20  # bytes of embeddings of callers' classes, and likewise of texts


@dataclass
class LoadedModel:
    """A version that can answer.

    Attributes:
        side: of its square images, pixels.
        classes: that it was trained to tell apart; [] when there were none.
        dimensions: lengths that its embeddings may be cut to: those that it was trained for (Kusupati et al. 2022,
            https://arxiv.org/abs/2205.13147).
        lineage: run, data set and DAG run that it comes from.
        since: when it was loaded, seconds since 1970.
        reference: what drift is measured against; None where the package has no usable one.
        calibration: how sure its answers may be; None where the package has no usable one, and `uncalibrated` says why.
        class_embeddings: (c, d) of its own classes over the prompts; None without classes.
        known_classes: embeddings of classes that callers named before.
        known_texts: embeddings of texts that were sent before.
        backends: what runs each tower, and why.
    """

    domain: str
    version: str
    clip: Clip
    side: int
    classes: list[str]
    dimensions: list[int]
    lineage: dict[str, str]
    reference: Reference | None = None
    calibration: Calibration | None = None
    uncalibrated: str = ""
    class_embeddings: np.ndarray | None = None
    known_classes: VectorMemory = field(default_factory=lambda: VectorMemory(REMEMBERED))
    known_texts: VectorMemory = field(default_factory=lambda: VectorMemory(REMEMBERED))
    since: float = field(default_factory=time.time)
    _set_limits: dict[int, float | None] = field(default_factory=dict)
    backends: dict[TowerKind, Choice] = field(default_factory=dict)

    @cached_property
    def temperature_scale(self) -> float:
        """What a similarity is multiplied with before a softmax: the model's learned inverse temperature."""
        return float(self.clip.model.logit_scale.detach().exp())

    @cached_property
    def _similarity(self) -> Similarity:
        """The model's similarity on the CPU, so that any thread may compare; first asked for in the inference thread."""
        return copy.deepcopy(self.clip.similarity).cpu()

    def embed_classes(self, classes: list[str]) -> np.ndarray:
        """Class embeddings (c, d) over the package's prompt templates; only in the inference thread."""
        with torch.inference_mode():
            return self.clip.class_embeddings(classes).cpu().numpy()

    def learned_classes(self, classes: list[str]) -> dict[str, np.ndarray]:
        """Those of some classes whose embeddings were fitted to images and are no mean over prompts: (d,) each."""
        own = self.class_embeddings if self.clip.learned else None
        if own is None:
            return {}
        place = {name: number for number, name in enumerate(self.classes)}
        return {name: own[place[name]] for name in classes if name in place}

    def prompts_of(self, classes: list[str]) -> list[str]:
        """What the package's prompt templates make of classes: those of the first, then those of the second, …"""
        return [template.format(name) for name in classes for template in self.clip.prepared().prompts]

    def mean_over_prompts(self, embedded: np.ndarray, classes: int) -> np.ndarray:
        """Embeddings (classes x prompts, d) of `prompts_of` -> one a class, (classes, d)."""
        by_class = torch.from_numpy(embedded).view(classes, -1, embedded.shape[1])
        with torch.inference_mode():
            return self._similarity.mean(by_class, 1).numpy()

    def set_limit(self, percent: int) -> float | None:
        """The nonconformity up to which classes belong to a set of that coverage; None where none can be claimed."""
        if percent not in self._set_limits:
            found, coverage = self.calibration, percent / 100
            claimed = found is not None and can_cover(found.groups, coverage)
            self._set_limits[percent] = group_quantile(found.scores, found.groups, coverage) if found and claimed else None
        return self._set_limits[percent]

    def cut(self, embeddings: np.ndarray, dimensions: int) -> np.ndarray:
        """The first `dimensions` numbers of embeddings (n, d), as embeddings of their own."""
        with torch.inference_mode():
            return self._similarity.prefix(torch.from_numpy(embeddings), dimensions).numpy()

    def similarity(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Embeddings (n, d) of images and (m, d) of texts -> their similarity, (n, m)."""
        return self._similarity.compare(image, text)

    def class_similarity(self, image: np.ndarray) -> np.ndarray:
        """Embeddings (n, d) of images -> similarity with the model's own classes, (n, c); (n, 0) where it has not two of them."""
        if self.class_embeddings is None or len(self.classes) < 2:
            return np.zeros((len(image), 0), np.float32)
        return self.similarity(image, self.class_embeddings)

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
    """How similar a request's images are to classes.

    Attributes:
        image: embeddings, (n, d).
        appearance: image statistics, (n, 5), where the window samples this request; else None.
        scores: similarity with each class, (n, c).
    """

    model: LoadedModel
    classes: list[str]
    image: np.ndarray
    appearance: np.ndarray | None
    scores: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """The number of each image's best class, (n,)."""
        return np.asarray(self.scores.argmax(axis=1))

    @property
    def labels(self) -> list[str]:
        return [self.classes[i] for i in self.best]

    @cached_property
    def has_own_classes(self) -> bool:
        """Whether the classes are those that the model was trained to tell apart, in whatever order."""
        return set(self.classes) == set(self.model.classes)

    @property
    def is_calibrated(self) -> bool:
        """Whether the probabilities are."""
        return self.has_own_classes and self.model.calibration is not None and self.model.calibration.fitted

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax over the classes, (n, c): at the calibrated temperature, else at the model's own."""
        calibration = self.model.calibration if self.has_own_classes else None
        logits = self.scores / calibration.temperature if calibration else self.scores * self.model.temperature_scale
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

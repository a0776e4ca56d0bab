"""Other registered models, and other prompts for the classes, compared with the champion on images of today.

Labeled images say who is right more often. Any image says whose reference shows images like it: a model that was made for
them may be registered already, in this domain or (when traffic was sent to the wrong one) in another.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.console import say
from ..core.errors import ClipftError, TransientError
from ..core.proportions import wilson
from .case import Calibration, Candidate, Comparison, Fit
from .diagnosis import LABELS_NEEDED
from .image_statistics import appearance
from .measure_reference import WINDOW
from .reference import ImageRows, Reference, Sample
from .report import SIDE
from .signals import SampleComparison, ratios
from .statistics import Array, calibrated_temperature, confidence, unit

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ..model.clip import Clip

VERSIONS = 4  # newest others of the domain
MAX_IMAGES = 200
MISSED = 0.1  # between confidence and accuracy, before confidence is worth fitting anew


def compare(
    domain: str,
    champion: "ModelVersion",
    images: Sequence[Image.Image],
    labels: Sequence[str],
    window: Array,
    closely: Sequence[int] = (),
) -> Comparison:
    """Ask the champion, the domain's newest other versions and the champions of other domains.

    Args:
        champion: the version that is live.
        images: of today, at most MAX_IMAGES; labels: what each shows, "" where nobody said.
        window: image statistics (n, 5) of the window, for models that are not asked for want of images.
        closely: numbers of images of which a report shows where the champion looked.
    Raises: TransientError when MLflow is away. A model that cannot be had is passed over.
    """
    labeled = [i for i, label in enumerate(labels) if label]
    right: dict[str, np.ndarray] = {}
    fits: list[Fit] = []
    prompts: dict[str, np.ndarray] = {}
    nearest, calibration = [""] * len(images), None
    looked: dict[int, Image.Image] = {}
    seen = np.array([appearance(p) for p in images]) if images else np.zeros((0, window.shape[1]))
    for of, version in _models(domain, champion):
        own = of == domain
        first = own and version.version == champion.version
        enough = own and len(labeled) >= LABELS_NEEDED
        try:
            model = _Model(of, version)
            if len(images) < WINDOW:
                fits.append(model.fit(None, window))
            if images and (first or enough or len(images) >= WINDOW):
                image = model.embed(images)
                if len(images) >= WINDOW:
                    fits.append(model.fit(image, seen))
                if first:
                    nearest = model.nearest(image)
                    looked = model.looked({i: images[i] for i in closely}, image)
                if enough:
                    right[model.version] = model.right(image, labels, labeled, model.prompts)
                if first and enough:
                    prompts = {d: model.right(image, labels, labeled, p) for d, p in _other_prompts(domain).items()}
                    calibration = model.calibration(image, labels, labeled)
        except TransientError:
            raise
        except ClipftError as error:
            say(f"Version {version.version} of {of} is not compared: {error}")
    base = right.pop(str(champion.version), None)
    asked = len(right) + len(prompts)
    return Comparison(
        [] if base is None else [candidate(name, r, base, asked) for name, r in right.items()],
        [] if base is None else [candidate(name, r, base, asked) for name, r in prompts.items()],
        sorted(fits, key=lambda f: f.ratio),
        calibration,
        nearest,
        looked,
    )


def candidate(name: str, right: np.ndarray, champion: np.ndarray, asked: int) -> Candidate:
    """A candidate from which answers were right, (n,) each; the lower end of its gain allows for how many were asked (Bonferroni)."""
    gain = right - champion
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, asked))
    low = gain.mean() - z * gain.std(ddof=1) / np.sqrt(len(gain))
    return Candidate(name, float(right.mean()), float(gain.mean()), float(low))


def _models(domain: str, champion: "ModelVersion") -> Iterator[tuple[str, "ModelVersion"]]:
    """Domain and version of the champion, of the newest others of its domain, and of the champions of other domains."""
    from .. import tracking

    yield domain, champion
    with tracking.retryable():
        versions = sorted(tracking.client().search_model_versions(f"name = '{champion.name}'"), key=lambda v: -int(v.version))
        elsewhere = {d: v for d, v in tracking.champions().items() if d != domain}
    rest = [v for v in versions if v.version != champion.version and v.tags.get("clipft.deploy") != "failed"]
    yield from ((domain, v) for v in rest[:VERSIONS])
    for other, number in sorted(elsewhere.items()):
        yield other, tracking.resolve_version(f"models:/{tracking.model_name(other)}/{number}")


def _other_prompts(domain: str) -> dict[str, Sequence[str]]:
    from ..domains import domain_names, get_domain

    return {d: get_domain(d).prompts for d in domain_names() if d != domain}


class _Model:
    """A registered version with its reference. Raises ClipftError when either cannot be had."""

    def __init__(self, domain: str, version: "ModelVersion") -> None:
        from .. import tracking
        from ..model.package import WEIGHTS, read_preprocessing, weights_digest

        self.domain, self.version = domain, str(version.version)
        package = tracking.fetch_package(version)
        self.prompts = read_preprocessing(package).prompts
        self.reference = Reference.load(package, weights_digest(package / WEIGHTS))
        self.package = package

    @cached_property
    def clip(self) -> "Clip":
        """Loaded when first asked for: comparing image statistics needs no weights."""
        from ..model import build

        return build.from_folder(self.package, source=f"version {self.version} of {self.domain}")

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of images, (n, d)."""
        import torch

        from ..data.images import square

        squares = torch.from_numpy(np.stack([square(p, self.clip.side, self.clip.aspect) for p in images]))
        with torch.inference_mode():
            parts = [self.clip.encode_images(squares[i : i + 64]) for i in range(0, len(squares), 64)]
        return torch.cat(parts).numpy()

    def scores(self, image: np.ndarray, classes: Sequence[str], prompts: Sequence[str]) -> np.ndarray:
        """Similarity of embeddings (n, d) with classes, (n, c)."""
        import torch

        if not classes:
            return np.zeros((len(image), 0), np.float32)
        with torch.inference_mode():
            of_classes = self.clip.class_embeddings(list(classes), prompts).numpy()
        return np.asarray(self.clip.similarity.compare(image, of_classes))

    def fit(self, image: Array | None, statistics: Array) -> Fit:
        """How far images are from this model's reference; without embeddings by their image statistics alone."""
        ref, count = self.reference, len(statistics)
        if image is None:
            rows = ImageRows(np.zeros((count, 0)), statistics, np.zeros((count, 0)))
        else:
            rows = ImageRows(unit(image), statistics, self.scores(image, ref.classes, self.prompts))
        samples = SampleComparison(ref, ref.sample, Sample(rows, ref.text[:0], ref.paired[:0]))
        found = ratios(samples, embedded=image is not None) if count else {}
        signal, ratio = max(found.items(), key=lambda kv: kv[1], default=("", 0.0))
        return Fit(self.domain, self.version, signal, float(ratio), image is not None)

    def right(self, image: np.ndarray, labels: Sequence[str], labeled: Sequence[int], prompts: Sequence[str]) -> np.ndarray:
        """Which labeled images the model names rightly with some prompts, as 0 and 1."""
        classes = sorted({labels[i] for i in labeled})
        named = self.scores(image[list(labeled)], classes, prompts).argmax(axis=1)
        return np.array([classes[n] == labels[i] for n, i in zip(named, labeled, strict=True)], dtype=float)

    def calibration(self, image: np.ndarray, labels: Sequence[str], labeled: Sequence[int]) -> Calibration | None:
        """The model's confidence compared with how often it is right; None while the two agree."""
        classes = self.reference.classes
        known = [i for i in labeled if labels[i] in classes]
        if len(classes) < 2 or len(known) < LABELS_NEEDED:
            return None
        scores = self.scores(image[known], classes, self.prompts)
        true = np.array([classes.index(labels[i]) for i in known])
        expected, right = confidence(scores, self.reference.facts.temperature), scores.argmax(axis=1) == true
        low, high = wilson(int(right.sum()), len(right))
        if low <= expected <= high or abs(expected - right.mean()) < MISSED:
            return None
        return Calibration(expected, float(right.mean()), len(right), calibrated_temperature(scores, true))

    def looked(self, images: Mapping[int, Image.Image], embedded: np.ndarray) -> dict[int, Image.Image]:
        """Small copies of images, by their numbers, colored where they speak for the model's answer; none without classes.

        Args:
            embedded: embeddings of all images, (n, d).
        """
        import torch

        from ..model import heatmap

        classes = self.reference.classes
        if len(classes) < 2:
            return {}
        with torch.inference_mode():
            texts = self.clip.class_embeddings(list(classes), self.prompts).float()
        answers = self.clip.similarity.compare(embedded, texts.numpy()).argmax(axis=1)
        found = {
            i: heatmap.looked(self.clip, image, texts, int(answers[i]), side=self.clip.side, shown=SIDE)
            for i, image in images.items()
        }
        return {i: image for i, image in found.items() if image}

    def nearest(self, image: np.ndarray) -> list[str]:
        """The reference's image most like each embedding, by sha256."""
        names = self.reference.facts.images
        if len(names) != len(self.reference.rows):  # a package of before
            return [""] * len(image)
        return [names[i] for i in (unit(image) @ self.reference.rows.image.T).argmax(axis=1)]

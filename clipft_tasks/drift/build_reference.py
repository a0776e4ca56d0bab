"""Building a model's reference from the data set that it was trained on."""

import copy

import numpy as np
import pandas as pd
import torch

from ..core.console import progress
from ..data.images import square
from ..data.versioning import Dataset
from ..domains import Domain
from ..model.clip import Clip
from .image_statistics import STATISTICS, appearance
from .measure_reference import measure_reference, sample_rows
from .reference import ImageRows, Reference
from .statistics import unit

HELD_OUT = 512  # validation rows behind the baseline accuracy


def build_reference(clip: Clip, dataset: Dataset, domain: Domain, side: int, weights: str, batch: int = 64) -> Reference:
    """Measure a trained model's reference.

    Args:
        side: the size that will be served.
        weights: digest of the model's weights.
    """
    every = pd.concat([dataset.split("train"), dataset.split("val")])
    frame = every.drop_duplicates("sha256")  # an image with several captions is one image
    frame = frame.iloc[sample_rows([str(g) for g in frame["group"]])]
    classes = dataset.classes if len(dataset.classes) > 1 else []
    validation = dataset.split("val").drop_duplicates("sha256")
    labeled = validation[validation["label"] != ""] if classes else validation.iloc[:0]
    held_out = labeled.iloc[np.linspace(0, len(labeled) - 1, min(HELD_OUT, len(labeled))).astype(int)]

    def embed(rows: pd.DataFrame, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (n, d) and image statistics (n, 5), from the images as they came."""
        embedded, statistics, squares = [np.zeros((0, clip.embed_dim), np.float32)], [], []
        for number, row in enumerate(progress(rows.itertuples(), what, len(rows)), 1):
            image = clip.open_image(dataset.image_bytes(row)).rgb
            statistics.append(appearance(image))
            squares.append(square(image, side, clip.aspect))
            if len(squares) == batch or number == len(rows):
                embedded.append(clip.encode_images(torch.from_numpy(np.stack(squares))).cpu().numpy())
                squares.clear()
        return np.concatenate(embedded), np.array(statistics, np.float32).reshape(-1, len(STATISTICS))

    with torch.inference_mode():
        of_classes = clip.class_embeddings(classes).cpu().numpy() if classes else np.zeros((0, clip.embed_dim))
        drawn = every.iloc[sample_rows([str(g) for g in every["group"]])]["caption"]
        captions = sorted({*drawn, *frame["caption"]})
        text = np.concatenate([clip.encode_texts(captions[i : i + 256]).cpu().numpy() for i in range(0, len(captions), 256)])
        image, statistics = embed(frame, "reference images")
        labeled_image, _ = embed(held_out, "validation images")
    position = {caption: i for i, caption in enumerate(captions)}
    compare = copy.deepcopy(clip.similarity).cpu().compare
    own = text[[position[c] for c in frame["caption"]]]
    return measure_reference(
        ImageRows(unit(image), statistics, compare(image, of_classes)),
        text=unit(text)[[position[c] for c in drawn]],
        groups=frame["group"].tolist(),
        classes=classes,
        held_out=(compare(labeled_image, of_classes), np.array([classes.index(v) for v in held_out["label"]], dtype=int)),
        scale=float(clip.model.logit_scale.detach().exp()),
        weights=weights,
        tolerance=domain.drift_tolerance,
        paired=np.diag(compare(image, own)).astype(np.float32),
        images=frame["sha256"].tolist(),
    )

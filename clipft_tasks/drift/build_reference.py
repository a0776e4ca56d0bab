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
from ..model.held_out import HeldOut
from .image_statistics import STATISTICS, appearance
from .measure_reference import measure_reference, sample_rows
from .reference import ImageRows, Reference
from .statistics import unit


def build_reference(
    clip: Clip, dataset: Dataset, domain: Domain, side: int, weights: str, held_out: HeldOut, batch: int = 64
) -> Reference:
    """Measure a trained model's reference.

    Args:
        side: the size that will be served.
        weights: digest of the model's weights.
        held_out: what the model says of the validation rows.
    """
    every = pd.concat([dataset.split("train"), dataset.split("val")])
    frame = every.drop_duplicates("sha256")  # an image with several captions is one image
    frame = frame.iloc[sample_rows([str(g) for g in frame["group"]])]
    classes = dataset.classes if len(dataset.classes) > 1 else []

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
    position = {caption: i for i, caption in enumerate(captions)}
    compare = copy.deepcopy(clip.similarity).cpu().compare
    own = text[[position[c] for c in frame["caption"]]]
    return measure_reference(
        ImageRows(unit(image), statistics, compare(image, of_classes)),
        text=unit(text)[[position[c] for c in drawn]],
        groups=[group or image_id for group, image_id in zip(frame["group"], frame["sha256"], strict=True)],
        classes=classes,
        held_out=held_out,
        scale=float(clip.model.logit_scale.detach().exp()),
        weights=weights,
        tolerance=domain.drift_tolerance,
        paired=np.diag(compare(image, own)).astype(np.float32),
        images=frame["sha256"].tolist(),
    )

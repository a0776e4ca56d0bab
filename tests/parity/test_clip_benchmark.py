"""Our metrics are clip-benchmark's, to the fourth decimal, for one model and the same data."""

import numpy as np
import pytest
import torch
from fixtures.evaluation import a_dataset
from fixtures.parity import a_clip
from torch.utils.data import DataLoader

from clipft_tasks.data.decoded_cache import decoded
from clipft_tasks.domains import Domain
from clipft_tasks.evaluate import predictions, zero_shot
from clipft_tasks.model.package import preprocessing_of

classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")

CLASSES = ["ash", "birch", "cedar", "elm", "fir", "oak", "pine"]
PROMPTS = ("a photo of a {}.", "the wood of a {}.")
SIDE = 32


@pytest.fixture
def clip():
    clip = a_clip().to("cpu")
    clip.model.eval()
    clip.preprocessing = preprocessing_of(Domain("general", "Trees", PROMPTS, PROMPTS[0]))
    return clip


class Images(torch.utils.data.Dataset):
    """What clip-benchmark loads: normalized images, and a class or a list of texts for each."""

    classes = CLASSES

    def __init__(self, clip, dataset, targets):
        frame = dataset.split("test").drop_duplicates("sha256")
        self.images = clip.normalize(
            decoded(dataset, frame, SIDE, "once", gray_bits=8, aspect=clip.aspect).take(np.arange(len(frame)))
        )
        self.targets = targets

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.targets[i]


def texts_as_lists(batch):
    images, texts = zip(*batch, strict=True)
    return torch.stack(images), texts


@pytest.fixture
def with_new_numpy(monkeypatch):
    """clip-benchmark 1.6.2 takes float() of an array with one number, which numpy 2.4 refuses; its arithmetic stays its own."""
    monkeypatch.setattr(classification, "float", lambda x: x.item() if isinstance(x, np.ndarray) else float(x), raising=False)


def test_classification(home, clip, tmp_path, with_new_numpy):
    labels = [CLASSES[i] for i in np.random.default_rng(0).choice(7, 180, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])]
    rows = [{"image": i, "caption": f"tree {i}", "label": label} for i, label in enumerate(labels)]
    dataset = a_dataset(tmp_path, rows)
    loader = DataLoader(Images(clip, dataset, [CLASSES.index(x) for x in labels]), batch_size=64)
    templates = [p.replace("{}", "{c}") for p in PROMPTS]
    theirs = classification.evaluate(clip.model, loader, clip.tokenizer, CLASSES, templates, "cpu", amp=False)

    ours, absent = predictions.all_metrics(zero_shot.predict(clip, zero_shot.Task(dataset, SIDE, 50)))
    assert absent == {}
    assert ours["accuracy"] == pytest.approx(theirs["acc1"], abs=5e-5)
    assert ours["top5_accuracy"] == pytest.approx(theirs["acc5"], abs=5e-5)
    assert ours["balanced_accuracy"] == pytest.approx(theirs["mean_per_class_recall"], abs=5e-5)
    assert 0 < ours["accuracy"] < ours["top5_accuracy"] < 1


def test_retrieval_with_several_captions_a_image(home, clip, tmp_path):
    rng = np.random.default_rng(1)
    texts = [
        [f"image {i} seen {way} by {rng.integers(1e6)}" for way in ("near", "far", "twice")[: i % 3 + 1]] for i in range(60)
    ]
    rows = [{"image": i, "caption": text} for i, some in enumerate(texts) for text in some]
    dataset = a_dataset(tmp_path, rows)
    loader = DataLoader(Images(clip, dataset, texts), batch_size=25, collate_fn=texts_as_lists)
    theirs = retrieval.evaluate(clip.model, loader, clip.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])

    ours, _ = predictions.all_metrics(zero_shot.predict(clip, zero_shot.Task(dataset, SIDE, 16)))
    for k in (1, 5, 10):
        assert ours[f"text_to_image_r{k}"] == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=5e-5)
        assert ours[f"image_to_text_r{k}"] == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=5e-5)
    assert 0 < ours["text_to_image_r10"] < 1 and 0 < ours["image_to_text_r10"] < 1

"""Which validation rows a model is judged on, and by what metric."""

import numpy as np
import pandas as pd
import pytest

from clipft_tasks.evaluate.zero_shot import ranked
from clipft_tasks.train.validation import ValidationResult, ValidationRows, _captions_of


def manifest(labels, groups=None, captions=None, split="val"):
    n = len(labels)
    return pd.DataFrame(
        {
            "key": [f"{split} {i:04d}" for i in range(n)],
            "split": split,
            "label": labels,
            "group": groups or [""] * n,
            "sha256": [f"{split} image {i}" for i in range(n)],
            "caption": captions or [f"an image of {x or i}." for i, x in enumerate(labels)],
        }
    )


def test_few_rows_are_all_taken_in_order():
    rows = ValidationRows.of(manifest(["a", "b"] * 5), limit=10)
    assert rows.at.tolist() == list(range(10)) and rows.metric == "balanced_accuracy" and rows.classes == ["a", "b"]


def test_many_rows_are_cut_to_as_many_of_each_class_the_same_ones_each_time():
    frame = manifest(["common"] * 90 + ["rare"] * 10 + [""] * 50)
    rows = ValidationRows.of(frame, limit=20)
    assert len(rows.at) == 20 and np.bincount(rows.truth).tolist() == [10, 10]
    assert rows.at.tolist() == ValidationRows.of(frame, limit=20).at.tolist() == sorted(rows.at)
    assert [rows.classes[t] for t in rows.truth] == frame["label"].iloc[rows.at].tolist()
    # Rows that come and go elsewhere leave the choice as it is.
    more = pd.concat([manifest(["rare"] * 30, split="train"), frame], ignore_index=True)
    assert ValidationRows.of(more, limit=20).at.tolist() == rows.at.tolist()


def test_a_large_group_does_not_stand_for_many():
    groups = ["one large patient"] * 60 + [f"patient {i}" for i in range(40)]
    rows = ValidationRows.of(manifest(["a", "b"] * 50, groups), limit=30)
    assert len(set(rows.groups)) >= 29


@pytest.mark.parametrize(
    ("labels", "captions", "metric", "tells"),
    [
        (["a", "b"], None, "balanced_accuracy", True),
        (["a", "a"], ["one", "two"], "image_to_text_r1", True),  # a model that calls everything `a` would be perfect
        (["", ""], ["one", "two"], "image_to_text_r1", True),
        (["a", "a"], ["same", "same"], "image_to_text_r1", False),
        ([], [], "image_to_text_r1", False),
    ],
)
def test_the_metric_follows_what_the_rows_can_tell(labels, captions, metric, tells):
    train = manifest(["a", "b"], split="train")
    rows = ValidationRows.of(pd.concat([train, manifest(labels, captions=captions)], ignore_index=True))
    assert (rows.metric, rows.is_informative) == (metric, tells)


def test_balanced_accuracy_does_not_follow_the_common_class():
    rows = ValidationRows.of(manifest(["common"] * 8 + ["rare"] * 2))
    assert ValidationResult(rows, np.array([True] * 8 + [False] * 2)).score == 0.5
    assert "balanced_accuracy 0.5000 on 10 validation rows" in str(ValidationResult(rows, np.array([True] * 8 + [False] * 2)))


def test_a_domain_whose_gate_looks_at_retrieval_is_judged_by_it():
    frame = manifest(["a", "b"] * 20)
    assert ValidationRows.of(frame).metric == "balanced_accuracy"
    found = ValidationRows.of(frame, metric="image_to_text_r1")
    assert (found.metric, found.classes) == ("image_to_text_r1", []) and (found.truth == 0).all()


def test_an_image_with_several_captions_is_asked_about_once_and_each_of_them_is_right():
    """A perfect model of images with five captions scores 1, as the evaluation's own metric does."""
    images, each = 40, 5
    frame = manifest([""] * images * each, captions=[f"image {i} in words {j}" for i in range(images) for j in range(each)])
    frame["sha256"] = np.repeat(np.arange(images), each).astype(str)
    rows = ValidationRows.of(frame)
    assert rows.at.tolist() == list(range(0, images * each, each))
    place, own, captions = _captions_of(frame, rows.at)
    assert (np.bincount(place) == each).all() and len(captions) == images * each
    similarity = np.array([[caption.startswith(f"image {i} ") for caption in captions] for i in range(images)], float)
    similarity -= [int(caption[-1]) / 10 for caption in captions]  # its own row's words are not the nearest of its captions
    assert (ranked(place, own, similarity.shape, lambda some: similarity[some]) < 1).all()

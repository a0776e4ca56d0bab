"""What differs between two versions, image by image."""

import time

import numpy as np
import pandas as pd

from clipft_tasks.contracts.dataset import DatasetDiff
from clipft_tasks.data.diff import as_text, compare_rows


def rows(*made: tuple) -> pd.DataFrame:
    """Rows of (image, caption, label, group, split)."""
    frame = pd.DataFrame(made, columns=["sha256", "caption", "label", "group", "split"])
    return frame.assign(name=frame["sha256"] + ".png", width=64, height=48)


OLD = rows(
    ("a", "one", "cat", "p", "train"), ("a", "two", "cat", "p", "train"), ("b", "b", "cat", "q", "test"), ("c", "c", "dog", "", "val")
)  # fmt: skip


def test_each_kind_of_change_is_counted_once_an_image_and_named():
    new = rows(
        ("a", "two", "cat", "p", "train"), ("b", "b", "lynx", "q", "train"), ("d", "d", "dog", "", "val"), ("e", "e", "dog", "", "val")
    )  # fmt: skip
    found = compare_rows(OLD, new, "general/v1", "general/v2", True)
    assert (found.images, found.rows) == ((3, 4), (4, 4))
    assert (found.added.examples, found.removed.examples) == (["d.png", "e.png"], ["c.png"])
    assert (found.relabeled.examples, found.recaptioned.examples, found.regrouped.count) == (["b.png"], ["a.png"], 0)
    assert found.moved.examples == ["b.png"] and found.moves == {"test to train": 1}
    assert found.classes == {"cat": (3, 1), "dog": (1, 2), "lynx": (0, 1)} and found.counts["train"] == (2, 2)
    assert DatasetDiff.model_validate(found.to_json()) == found
    assert "other labels: 1 (b.png)" in as_text(found) and "not comparable" not in as_text(found)


def test_the_same_rows_in_another_order_do_not_differ():
    found = compare_rows(OLD, OLD[::-1], "general/v1", "general/v2", False)
    kinds = (found.added, found.removed, found.relabeled, found.recaptioned, found.regrouped, found.moved)
    assert [kind.count for kind in kinds] == [0] * 6 and not found.classes
    assert "not comparable" in as_text(found)


def test_a_hundred_thousand_rows_take_seconds():
    numbers = np.arange(100_000).astype(str)
    old = pd.DataFrame({"sha256": numbers, "caption": numbers, "label": "a", "group": "", "split": "train"})
    old = old.assign(name=numbers, width=1, height=1)
    began = time.monotonic()
    found = compare_rows(old, old[1000:].assign(label="b"), "general/v1", "general/v2", True)
    assert time.monotonic() - began < 15 and (found.removed.count, found.relabeled.count) == (1000, 99_000)

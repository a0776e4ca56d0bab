"""Training input: shares add up to the whole, texts are cut and repeated without effect, and threads change nothing."""

import io
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_image
from fixtures.datasets import a_version
from fixtures.errors import refuses

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data import shards
from clipft_tasks.data.loader import BUCKETS, Batch, TrainingData, ahead
from clipft_tasks.data.versioning import Dataset
from clipft_tasks.domains import Augment
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip

HOW = Augment(crop_min=0.5, flip_vertical=True, brightness=0.2, contrast=0.2)
LONG = "with a description of its color, its edges, its noise and of all else"
CPU = torch.device("cpu")


def packed(folder: Path, count: int = 22) -> Dataset:
    """A data set without repository: red and blue squares, short captions and long, one image with two of them."""
    rows, entries = [], []
    for number in range(count):
        label, out = ("red", "blue")[number % 2], io.BytesIO()
        made_image(label, number).save(out, "PNG")
        captions = [f"square {number // 3}"] + [f"a {label} square {LONG}"] * (number == 4)
        for caption in captions:
            key = f"{len(rows):064x}"
            entries.append(shards.Entry(key, "png", out.getvalue()))
            rows.append({"key": key, "name": f"{number}.png", "caption": caption, "label": label if number > 1 else "",
                         "group": "", "split": "train", "sha256": f"{number:x}"})  # fmt: skip
    places = [vars(place) for _, place in shards.pack(entries, folder)]
    frame = pd.DataFrame([row | place for row, place in zip(rows, places, strict=True)])
    return Dataset(a_version(), frame, folder)


@pytest.fixture
def clip(home, tiny) -> Clip:
    return build.load(str(tiny))


@pytest.fixture
def data(home, clip, tmp_path) -> TrainingData:
    return TrainingData.open(packed(tmp_path / "shards"), clip, HOW, largest=32, batch=7, seed=0, gray_bits=16)


def same(one: Batch, other: Batch) -> bool:
    tensors = [
        (one.images, other.images),
        *zip(one.geometry[:3], other.geometry[:3], strict=True),
        (one.tokens, other.tokens),
    ]
    tensors += [(one.caption, other.caption), (one.label, other.label)]
    return all(torch.equal(a, b) for a, b in tensors) and one.keys.tolist() == other.keys.tolist() and one.side == other.side


# Batches --------------------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_images_captions_and_labels_of_its_rows(data, clip, tmp_path):
    rows = packed(tmp_path / "again").frame.set_index("key")
    for step in range(6):
        batch = data.batch(step, 32)
        assert len(set(batch.keys)) == len(batch) == len(batch.images) == 7
        for key, caption, label in zip(batch.keys, batch.caption, batch.label, strict=True):
            written = clip.tokenizer([rows.loc[key, "caption"]])[0, : batch.tokens.shape[1]]
            assert torch.equal(batch.tokens[caption], written)
            assert int(label) == {"": -1, "blue": 0, "red": 1}[rows.loc[key, "label"]]
        numbers = [int(key, 16) for key in batch.keys]
        assert torch.equal(batch.images, data.images.take(np.array(numbers)))
        assert len(batch.tokens.unique(dim=0)) == len(batch.tokens)  # each caption once


@pytest.mark.parametrize("world", [2, 3, 4, 5, 7, 9])
def test_the_shares_of_all_ranks_are_the_whole_batch(data, world):
    for step in (0, 4):
        whole = data.batch(step, 24)
        shares = [data.batch(step, 24, rank=rank, world=world) for rank in range(world)]
        joined = replace(
            whole,
            images=torch.cat([s.images for s in shares]),
            geometry=whole.geometry._make(
                [*(torch.cat(parts) for parts in zip(*(s.geometry[:3] for s in shares), strict=True)), whole.geometry.zoom]
            ),
        )
        assert same(joined, whole)
        assert [i for s in shares for i in range(len(whole))[s.rows]] == list(range(len(whole)))
        assert all(s.rows.stop - s.rows.start == len(s.images) for s in shares)
        assert all(same(replace(s, images=whole.images, geometry=whole.geometry), whole) for s in shares)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_labeled_rows_are_worded_as_a_prompt_of_their_class_as_often_as_is_asked(home, clip, tmp_path, share):
    dataset, prompts = packed(tmp_path / "shards"), ("a {} thing.", "a photo of {}.")
    rows = dataset.frame.set_index("key")
    how = replace(HOW, prompt_share=share)
    data = TrainingData.open(dataset, clip, how, largest=32, batch=7, seed=0, gray_bits=16, prompts=prompts)
    own, said = 0, set()
    for step in range(60):
        batch = data.batch(step, 32)
        assert same(batch, data.batch(step, 32)), "a batch is a function of its step"
        for key, caption in zip(batch.keys, batch.caption, strict=True):
            label, text = rows.loc[key, "label"], batch.tokens[caption]
            wordings = {p.format(label): clip.tokenizer([p.format(label)])[0, : len(text)] for p in prompts if label}
            found = [w for w, tokens in wordings.items() if torch.equal(tokens, text)]
            said.update(found)
            if not found:
                assert torch.equal(clip.tokenizer([rows.loc[key, "caption"]])[0, : len(text)], text)
                own += bool(label)
    assert said == {p.format(c) for p in prompts for c in ("red", "blue")}
    labeled = 60 * 7 * (rows["label"] != "").mean()
    assert own / labeled == pytest.approx(1 - share, abs=0.12)


def test_rows_keep_their_captions_where_no_prompts_are_drawn(home, clip, tmp_path, data):
    with_prompts = TrainingData.open(
        packed(tmp_path / "again"), clip, HOW, largest=32, batch=7, seed=0, gray_bits=16, prompts=("a {}.",)
    )
    assert all(same(with_prompts.batch(step, 32), data.batch(step, 32)) for step in range(6))


def test_bucketed_texts_are_the_same_and_repeats_that_nobody_refers_to(data):
    counts = set()
    for step in range(9):
        plain, bucketed = data.batch(step, 32), data.batch(step, 32, bucketed=True)
        count = len(plain.tokens)
        assert len(bucketed.tokens) == min(b for b in BUCKETS if b >= count)
        assert bool((bucketed.tokens[count:] == plain.tokens[-1]).all()) and int(bucketed.caption.max()) < count
        assert same(replace(bucketed, tokens=bucketed.tokens[:count]), plain)
        counts.add(count)
    assert counts - set(BUCKETS)  # some were rounded up


def test_tokens_are_cut_to_the_bucket_of_the_longest_caption(data, clip):
    widths = set()
    for step in range(60):
        batch = data.batch(step, 32)
        longest = max(int((row != 0).sum()) for row in batch.tokens)
        assert batch.tokens.shape[1] == min(b for b in (8, 16, 24, 32) if b >= longest)
        widths.add(batch.tokens.shape[1])
    assert widths == {8, 24}  # the long caption came, in some epochs


def test_a_caption_of_nothing_but_padding_has_features(home, clip, tmp_path):
    clip.tokenizer = lambda texts: torch.zeros(len(texts), 32, dtype=torch.long)
    clip.tokenizer.context_length = 32
    batch = TrainingData.open(packed(tmp_path / "shards"), clip, HOW, largest=32, batch=7, seed=0, gray_bits=16).batch(0, 32)
    assert batch.tokens.shape[1] == 8 and not batch.tokens.any()
    assert bool(clip.text_features(batch.tokens).isfinite().all())


# Ahead ----------------------------------------------------------------------------------------------------------------


def fetched(make: object, first: int, last: int, workers: int = 2) -> list:
    return list(ahead(make, first, last, device=CPU, resident=False, workers=workers))


def at_work() -> int:
    return sum(t.name.startswith("batches") for t in threading.enumerate())


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("first", [0, 4])
def test_batches_come_in_order_whatever_the_number_of_workers_and_from_mid_epoch(data, workers, first):
    def make(step: int) -> Batch:
        time.sleep(step * 7 % 4 / 500)
        return data.batch(step, (24, 32)[step % 2])

    found = fetched(make, first, 11, workers)
    assert data.sampler.steps_per_epoch == 3  # four is inside an epoch
    assert len(found) == 11 - first and all(same(batch, make(first + i)) for i, batch in enumerate(found))
    assert fetched(make, 11, 11, workers) == [] and not at_work()


def test_a_consumer_that_stops_early_stops_the_threads_and_what_is_waiting():
    made = []

    def make(step: int) -> int:
        made.append(step)
        time.sleep(0.3 if step else 0)
        return step

    batches = ahead(make, 0, 10_000, device=CPU, resident=False, workers=3)
    assert next(batches) == 0 and at_work()
    batches.close()
    assert not at_work() and sorted(made) == list(range(len(made))) and len(made) <= 5  # of ten thousand


def test_what_a_worker_raises_reaches_the_consumer_at_its_step():
    def make(step: int) -> int:
        if step == 3:
            raise ClipftError("image x", "it is broken", code="test.broken")
        return step

    batches = ahead(make, 0, 100, device=CPU, resident=False, workers=4)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with refuses("test.broken", "image x"):
        next(batches)
    assert not at_work() and next(batches, "over") == "over"

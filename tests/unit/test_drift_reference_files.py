"""References on disk: they come back as they went, or are refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.errors import refuses
from fixtures.references import CLASSES, SEEN, a_reference, captions, compared, looked, measured, ratios, unit
from safetensors.numpy import load_file, save_file

from clipft_tasks.drift.measure_reference import ROWS
from clipft_tasks.drift.reference import FACTS, TENSORS, ImageRows, Reference, ReferenceFacts
from clipft_tasks.drift.signals import Statistic, signals


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_a_reference_comes_back_as_it_was_saved(classes, tmp_path):
    written = measured(looked(SEEN, 0, classes=classes), paired=looked(SEEN, 0).similarity[:, 0], images=["a" * 64] * SEEN)
    written.save(tmp_path)
    found = Reference.load(tmp_path, "w" * 64)
    assert found.facts == written.facts and found.classes == CLASSES[:classes] and found.limits == written.limits
    for name, value in vars(found.rows).items():
        assert value.shape == vars(written.rows)[name].shape and np.allclose(value, vars(written.rows)[name], atol=1e-3), name
    assert np.array_equal(found.rows.appearance, written.rows.appearance) and np.array_equal(found.paired, written.paired)
    assert np.allclose(found.text, written.text, atol=1e-3)
    window = looked(64, 5, classes=classes)
    assert ratios(found, window) == pytest.approx(ratios(written, window), abs=0.05)
    assert found.novelty(window.image) == pytest.approx(written.novelty(window.image), rel=0.02, abs=0.01)


def text_drifts(reference: Reference, text: np.ndarray) -> bool:
    found: Statistic = signals()["text"].measure(compared(reference, text=text, permutations=250))
    return found.value > reference.limits["text"] and found.p_value <= 0.005


@pytest.mark.parametrize("common", [0.5, 0.8, 0.95])
def test_the_very_captions_of_the_reference_are_no_drift_after_it_was_saved(common, tmp_path):
    """Two captions, as labels give them: most pairs of texts are the same one twice."""
    over = []
    for seed in range(4):
        two, rng = captions(2, seed), np.random.default_rng(seed)
        measured(looked(60, 0), text=two[(rng.random(SEEN) > common).astype(int)]).save(tmp_path)
        found = Reference.load(tmp_path)
        for _ in range(3):
            over.append(text_drifts(found, two[(rng.random(64) > common).astype(int)]))
        assert text_drifts(found, captions(64, 6, strange=1.0))
    assert sum(over) <= 1


def test_a_reference_of_before_pairs_were_measured_is_read_and_says_nothing_of_them(saved):
    tensors = load_file(saved / TENSORS)
    del tensors["paired"]
    save_file(tensors, saved / TENSORS)
    found = Reference.load(saved)
    assert len(found.paired) == 0 and found.limits == a_reference().limits


def test_a_large_reference_is_still_small_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(ROWS, 1024))) for _ in range(2))
    rows = ImageRows(image, looked(ROWS, 0).appearance, image @ text[:100].T)
    Reference(rows, text, a_reference().facts).save(tmp_path)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 5e6


@pytest.fixture
def saved(tmp_path) -> Path:
    a_reference().save(tmp_path)
    return tmp_path


def test_a_reference_of_other_weights_is_refused(saved):
    with refuses("reference.other_weights", saved):
        Reference.load(saved, "v" * 64)
    assert Reference.load(saved).classes == CLASSES


@pytest.mark.parametrize("missing", [[TENSORS], [FACTS], [TENSORS, FACTS]], ids=str)
def test_a_package_without_its_reference_is_refused(saved, missing):
    for name in missing:
        (saved / name).unlink()
    with refuses("reference.unreadable", saved, "No such file"):
        Reference.load(saved)


@pytest.mark.parametrize("name", [TENSORS, FACTS])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 64,
        lambda data: b"[]",
    ],
    ids=["empty", "its beginning", "its half", "noise", "a list"],
)
def test_a_damaged_reference_is_refused(saved, name, damage):
    (saved / name).write_bytes(damage((saved / name).read_bytes()))
    with refuses("reference.unreadable", saved):
        Reference.load(saved, "w" * 64)


@pytest.mark.parametrize("name", ["image", "appearance", "text"])
def test_a_reference_that_lacks_a_part_is_refused_by_its_name(saved, name):
    tensors = load_file(saved / TENSORS)
    del tensors[name]
    save_file(tensors, saved / TENSORS)
    with refuses("reference.unreadable", name):
        Reference.load(saved)


def change_facts(folder: Path, change: Callable[[dict], object]) -> None:
    facts = json.loads((folder / FACTS).read_text())
    change(facts)
    (folder / FACTS).write_text(json.dumps(facts))


@pytest.mark.parametrize("name", ["weights", "limits", "classes", "baseline", "kernel_width", "expected_range"])
def test_a_reference_that_lacks_a_fact_is_refused(saved, name):
    change_facts(saved, lambda facts: facts.pop(name))
    with refuses("reference.unreadable", name):
        Reference.load(saved, "w" * 64)


@pytest.mark.parametrize(("number", "said"), [(0, "format 0"), (4, "format 4, this one reads 3"), (None, "format number")])
def test_another_format_is_refused_by_its_number(saved, number, said):
    change_facts(saved, lambda facts: facts.update(format=number))
    with refuses("reference.unreadable", said):
        Reference.load(saved)


def test_another_format_is_named_even_when_its_tensors_are_others(saved):
    change_facts(saved, lambda facts: facts.update(format=ReferenceFacts.FORMAT + 1))
    save_file({"images": np.zeros((2, 2), np.float32)}, saved / TENSORS)
    with refuses("reference.unreadable", f"format {ReferenceFacts.FORMAT + 1}", f"reads {ReferenceFacts.FORMAT}"):
        Reference.load(saved)


def test_a_reference_of_the_release_before_is_read(saved):
    """As packages that are registered hold it."""
    facts = json.loads((saved / FACTS).read_text())
    names = {"kernel_width": "width", "text_kernel_width": "text_width", "novelty_scale": "apart", "baseline": "promised"}
    old = {(names | {"expected_range": "range"}).get(name, name): value for name, value in facts.items()}
    del old["novelty_limit"]  # which came later
    (saved / FACTS).write_text(json.dumps(old | {"format": 1}))
    assert {"width", "text_width", "apart", "promised", "range"} <= old.keys()
    found = Reference.load(saved, "w" * 64)
    assert found.facts == a_reference().facts.model_copy(update={"novelty_limit": None})
    assert found.facts.format == ReferenceFacts.FORMAT and found.limits == a_reference().limits
    del old["images"]  # as before those were kept
    (saved / FACTS).write_text(json.dumps(old | {"format": 1}))
    assert Reference.load(saved).facts.images == []


@pytest.mark.parametrize("name", ["image", "text", "appearance"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_reference_that_holds_no_numbers_is_refused(saved, name, value):
    tensors = load_file(saved / TENSORS)
    tensors[name].flat[3] = value
    save_file(tensors, saved / TENSORS)
    with refuses("reference.not_finite", saved):
        Reference.load(saved)


def test_a_limit_that_is_no_number_is_refused_for_nothing_would_ever_exceed_it(saved):
    change_facts(saved, lambda facts: facts["limits"].update(image=float("nan")))
    with refuses("reference.unreadable", "limits.image"):
        Reference.load(saved)

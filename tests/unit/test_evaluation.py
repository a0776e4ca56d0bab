"""A model looks at a split: every metric, what is missing and why, comparisons, slices, robustness, forgetting."""

import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fixtures.errors import refuses
from fixtures.evaluation import a_dataset
from fixtures.parity import a_clip
from torch.nn import functional

from clipft_tasks.data import versioning
from clipft_tasks.domains import Domain, get_domain
from clipft_tasks.domains.base import CORRUPTIONS
from clipft_tasks.evaluate import (
    corruptions,
    error_analysis,
    forgetting,
    linear_probe,
    metrics,
    predictions,
    robustness,
    zero_shot,
)
from clipft_tasks.evaluate.bootstrap import holm, interval_of_rows
from clipft_tasks.evaluate.predictions import Predictions
from clipft_tasks.evaluate.slices import slices
from clipft_tasks.model import starter
from clipft_tasks.model.package import preprocessing_of

DOMAIN = get_domain("general")
SIDE = 32


@pytest.fixture(scope="module")
def clip():
    clip = a_clip().to("cpu")
    clip.model.eval()
    clip.preprocessing = preprocessing_of(DOMAIN)
    return clip


def labeled(n: int = 60, classes: int = 3, **more: object) -> list[dict]:
    return [{"image": i, "caption": f"image {i}", "label": f"class {i % classes}", **more} for i in range(n)]


@pytest.fixture
def dataset(home, tmp_path):
    rows = labeled(60) + labeled(30, split="train") + labeled(20, split="val")
    for i, row in enumerate(rows):
        row["image"] = i
    return a_dataset(tmp_path, rows)


def task(dataset, batch: int = 16) -> zero_shot.Task:
    return zero_shot.Task(dataset, SIDE, batch)


def scored(clip, dataset, split: str = "test", limit: int = 0) -> Predictions:
    return zero_shot.predict(clip, task(dataset), split, limit)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_every_metric_is_there_and_every_headline_holds_its_interval(clip, dataset):
    found = scored(clip, dataset)
    metrics, absent = predictions.all_metrics(found)
    assert absent == {} and "top3_accuracy" not in metrics  # of three classes
    asked = {"accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "calibration_error",
             "image_to_text_r1", "image_to_text_r5", "text_to_image_r10", "image_to_text_median_rank", "text_to_image_median_rank",
             "modality_gap", "alignment", "uniformity_image", "uniformity_text", "milliseconds_per_image"}  # fmt: skip
    assert asked <= metrics.keys()
    assert metrics["milliseconds_per_image"] > 0 and metrics["image_to_text_median_rank"] >= 1
    names = zero_shot.headlines(dataset)
    assert names == ["balanced_accuracy", "accuracy", "image_to_text_r1", "text_to_image_r1"]
    for name, each in predictions.intervals(found, [*names, "macro_f1", "image_to_text_r5"], 200).items():
        assert each.value == pytest.approx(metrics[name]) and each.low <= each.value <= each.high
    json.dumps(metrics, allow_nan=False)


def test_an_interval_of_a_metric_that_has_none_is_refused_with_those_that_do(clip, dataset):
    with refuses("metric.no_interval", "macro_auroc", "balanced_accuracy"):
        predictions.intervals(scored(clip, dataset), ["macro_auroc"], 100)


def test_the_interval_of_balanced_accuracy_is_that_of_rows_drawn_by_hand(clip, dataset):
    found = scored(clip, dataset)
    low, high = interval_of_rows(
        lambda rows: metrics.balanced_accuracy(found.truth[rows], found.predicted[rows]), found.groups, 3000
    )
    ours = predictions.intervals(found, ["balanced_accuracy"], 3000)["balanced_accuracy"]
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.04)  # Wilson's lies a little nearer to a half
    assert ours.groups == len(set(found.groups))


def test_batches_and_limits_change_nothing_but_the_rows(clip, dataset):
    whole = scored(clip, dataset)
    other = zero_shot.predict(clip, task(dataset, batch=7))
    np.testing.assert_allclose(whole.scores, other.scores, atol=1e-5)
    part = scored(clip, dataset, limit=10)
    assert len(part.truth) == 10 and set(part.keys) <= set(whole.keys)
    np.testing.assert_allclose(part.scores, whole.scores[np.isin(whole.keys, part.keys)], atol=1e-5)


def test_a_image_with_several_captions_is_one_query_and_none_of_them_stands_in_the_others_way(home, clip, tmp_path):
    rows = [{"image": i // 3, "caption": f"caption {i}"} for i in range(30)]
    found = scored(clip, a_dataset(tmp_path, rows))
    assert found.image_weight.tolist() == [pytest.approx(1 / 3)] * 30
    assert (found.image_rank.reshape(10, 3) == found.image_rank[::3, None]).all() and found.image_rank.max() <= 27
    assert len(set(found.groups)) == 10  # rows of one image are resampled together


def test_a_similarity_of_the_models_own_is_what_counts(clip, dataset):
    class Opposite(type(clip.similarity)):
        def forward(self, image, text):
            return -(image @ text.T)

    other = replace(clip, similarity=Opposite(clip.embed_dim))
    np.testing.assert_allclose(scored(other, dataset).scores, -scored(clip, dataset).scores, atol=1e-6)


def test_a_model_that_answers_nan_is_right_about_nothing_and_says_so(dataset, clip):
    broken = a_clip().to("cpu")
    broken.preprocessing = preprocessing_of(DOMAIN)
    broken.model.eval()
    broken.model.visual.proj.data.fill_(float("nan"))
    found = scored(broken, dataset)
    metrics, absent = predictions.all_metrics(found)
    assert (found.predicted == -1).all() and metrics["accuracy"] == metrics["image_to_text_r1"] == 0
    assert absent["macro_auroc"] == "the model's scores are not all numbers"
    intervals = predictions.intervals(found, zero_shot.headlines(dataset), 100)
    json.dumps([metrics, [each.to_json() for each in intervals.values()]], allow_nan=False)
    assert predictions.calibration(found, scored(broken, dataset, "val")) == {}
    assert predictions.paired_gain(scored(clip, dataset), found, "accuracy", 200).low > 0
    page = error_analysis.analyze(dataset, {"candidate": found}, images=True)
    assert page.mistakes[0].answer == "no answer" and page.models["candidate"].confusion[0].answer == ""


def test_the_worst_mistakes_show_where_the_model_looked(dataset, clip):
    looked = error_analysis.looked_by(clip, dataset.classes, SIDE)
    mistakes = error_analysis.analyze(dataset, {"candidate": scored(clip, dataset)}, images=True, looked=looked).mistakes
    assert len(mistakes) > error_analysis.LOOKED
    for mistake in mistakes[: error_analysis.LOOKED]:
        assert mistake.looked.startswith("data:image/jpeg") and mistake.looked != mistake.image
    assert not any(mistake.looked for mistake in mistakes[error_analysis.LOOKED :])
    assert error_analysis.looked_by(clip, dataset.classes[:1], SIDE) is None


# Bad days -------------------------------------------------------------------------------------------------------------


def test_rows_without_labels_do_not_count_and_the_others_do(home, clip, tmp_path):
    rows = labeled(40)
    for row in rows[::2]:
        row["label"] = ""
    dataset = a_dataset(tmp_path, rows)
    found = scored(clip, dataset)
    metrics, absent = predictions.all_metrics(found)
    assert absent == {} and metrics["accuracy"] == np.mean(found.predicted[1::2] == found.truth[1::2])


def test_test_rows_without_any_label_leave_retrieval(home, clip, tmp_path):
    dataset = a_dataset(tmp_path, labeled(20, split="train") + [{"image": 50 + i, "caption": f"c {i}"} for i in range(20)])
    assert zero_shot.headlines(dataset) == ["image_to_text_r1", "text_to_image_r1"]
    metrics, absent = predictions.all_metrics(scored(clip, dataset))
    assert absent == {"classification": "no row of the split has a label"} and "accuracy" not in metrics
    assert error_analysis.analyze(dataset, {"candidate": scored(clip, dataset)}, images=False).models["candidate"].classes == []


def test_one_class_only(home, clip, tmp_path):
    dataset = a_dataset(tmp_path, labeled(20, classes=1))
    assert zero_shot.headlines(dataset) == ["image_to_text_r1", "text_to_image_r1"]
    assert predictions.all_metrics(scored(clip, dataset))[1] == {"classification": "the data set has fewer than two classes"}


def test_test_rows_of_one_class_of_several_have_no_auroc_and_say_why(home, clip, tmp_path):
    rows = [*labeled(12, classes=1), {"image": 90, "caption": "other", "label": "class 9", "split": "train"}]
    metrics, absent = predictions.all_metrics(scored(clip, a_dataset(tmp_path, rows)))
    assert absent == dict.fromkeys(("macro_auroc", "macro_average_precision"), "the rows are all of one class")
    assert metrics["balanced_accuracy"] == metrics["accuracy"]


def test_captions_all_alike_are_no_retrieval(home, clip, tmp_path):
    dataset = a_dataset(tmp_path, [row | {"caption": "a thing"} for row in labeled(20)])
    assert zero_shot.headlines(dataset) == ["balanced_accuracy", "accuracy"]
    assert predictions.all_metrics(scored(clip, dataset))[1] == {"uniformity_text": "too few rows"}


@pytest.mark.parametrize(("split", "why"), [("test", "they have one caption"), ("train", "they are none")])
def test_nothing_to_tell_apart_is_refused(home, tmp_path, split, why):
    dataset = a_dataset(tmp_path, [{"image": i, "caption": "a thing", "split": split} for i in range(9)])
    with refuses("evaluate.nothing_to_tell_apart", "general/v1", why):
        zero_shot.headlines(dataset)


def test_classes_unseen_in_training_are_a_slice_of_their_own(home, clip, tmp_path):
    rows = labeled(30, classes=3) + [row | {"image": 100 + i} for i, row in enumerate(labeled(20, classes=2, split="train"))]
    dataset = a_dataset(tmp_path, rows)
    parts = slices(dataset, replace(DOMAIN, slices=()))
    assert list(parts) == ["class=unseen"] and (dataset.split("test")["label"].iloc[parts["class=unseen"]] == "class 2").all()
    assert error_analysis.analyze(dataset, {"candidate": scored(clip, dataset)}, images=False).train_rows["class 2"] == 0


def test_two_models_on_different_rows_are_not_compared(clip, dataset):
    whole = scored(clip, dataset)
    with refuses("compare.different_rows", "60 and 50, 50 of them"):
        predictions.paired_gain(whole, whole.take(np.arange(50)), "accuracy", 100)


# Comparisons ----------------------------------------------------------------------------------------------------------


def test_a_model_is_no_better_than_itself(clip, dataset):
    whole = scored(clip, dataset)
    gain = predictions.paired_gain(whole, whole, "balanced_accuracy", 100)
    assert (gain.value, gain.p, gain.groups) == (0, 1, 60)
    assert -0.07 < gain.low == -gain.high < -0.05  # the rule of three: at 60 images nothing differed


def test_many_comparisons_are_corrected_for_being_many(clip, dataset):
    whole = scored(clip, dataset)
    better = replace(whole, predicted=np.where(np.arange(60) % 6 < 3, whole.truth, whole.predicted))
    names = zero_shot.headlines(dataset)
    found = predictions.comparisons(better, {"champion": whole, "start": whole}, names, 500)
    assert [(c.against, c.metric) for c in found] == [(who, n) for who in ("champion", "start") for n in names]
    gain = found[0]
    assert gain.low > 0 and gain.p < 0.001 and [c.p_holm for c in found] == holm([c.p for c in found])
    alone = predictions.paired_gain(better, whole, names[0], 500)
    assert dict(alone) == {k: getattr(gain, k) for k in dict(alone)}


def test_what_is_known_of_the_general_set_is_what_the_whole_matrix_says(clip, monkeypatch):
    monkeypatch.setattr("clipft_tasks.evaluate.zero_shot.BLOCK", 100)
    torch.manual_seed(0)
    texts = [f"thing {i % 17}" for i in range(40)]  # words that repeat
    words = torch.randn(17, clip.embed_dim)[[int(text.split()[1]) for text in texts]]
    now = forgetting.Embeddings(*(functional.normalize(x, dim=1) for x in (torch.randn(40, clip.embed_dim) + words, words)))
    similarity = (now.image @ now.text.T).numpy()

    def chance(own: float, others: np.ndarray, drawn: int) -> float:
        """That the best of one's own beats so many of the others, drawn at random."""
        ahead, n = int((others >= own - 1e-7).sum()), len(others)
        return math.comb(n - ahead, min(drawn, n)) / math.comb(n, min(drawn, n))

    ids, expected = np.array(texts), []
    drawn = min(9, min(sum(ids != text) for text in texts))
    for i, text in enumerate(texts):
        same, first = ids == text, np.unique(ids, return_index=True)[1]
        of_image = chance(similarity[i, same].max(), similarity[i, [j for j in first if ids[j] != text]], 9)
        of_text = chance(similarity[same, i].max(), similarity[~same, i], drawn)
        expected.append((of_image + of_text) / 2)
    assert forgetting.pairs_known(clip, now, texts) == pytest.approx(np.array(expected), abs=1e-6)


# Calibration and linear probes -----------------------------------------------------------------------------------------------


def test_a_model_that_is_too_sure_is_calibrated_by_the_validation_rows(clip, dataset):
    test, val = scored(clip, dataset), scored(clip, dataset, "val")
    sharp = replace(test, scale=5000.0)
    found = predictions.calibration(sharp, val)
    assert found["temperature"] == 1 / 5000 and found["fitted_temperature"] > found["temperature"]
    assert found["fitted_calibration_error"] < predictions.all_metrics(sharp)[0]["calibration_error"]


def test_linear_probes_find_what_is_in_the_features(clip, dataset):
    rng = np.random.default_rng(0)
    train, test = scored(clip, dataset, "train").take(np.arange(150) % 30), scored(clip, dataset)
    centers = rng.normal(size=(3, 32))
    made = lambda s: replace(s, image=centers[s.truth] + 0.3 * rng.normal(size=(len(s.truth), 32)))  # noqa: E731
    found, why = linear_probe.fit(made(train), made(test))
    assert why == "" and all(value > 0.9 for value in found.values()) and len(found) == 4
    noise, _ = linear_probe.fit(train, test)  # classes are drawn without regard to the images
    assert all(value < 0.7 for value in noise.values())


def test_a_linear_probe_without_classes_says_why(clip, dataset):
    train, test = scored(clip, dataset, "train"), scored(clip, dataset)
    assert linear_probe.fit(replace(train, truth=np.zeros(30, int)), test) == (
        {},
        linear_probe.fit(train, replace(test, truth=-np.ones(60)))[1],
    )
    assert "not all numbers" in linear_probe.fit(replace(train, image=train.image * np.nan), test)[1]


# Slices ---------------------------------------------------------------------------------------------------------------


def test_slices_are_of_the_domains_columns_where_they_split_anything(home, tmp_path):
    rows = [
        row | {"mode": "L" if i < 12 else "RGB", "side": 40 if i % 2 else 60, "group": f"g{i % 5}"}
        for i, row in enumerate(labeled(60))
    ]
    dataset = a_dataset(tmp_path, rows)
    parts = slices(dataset, replace(DOMAIN, slices=("size", "mode", "format", "group")))
    assert set(parts) == {"size=small", "size=large", "mode=L", "mode=RGB", *(f"group=g{i}" for i in range(5))}
    assert parts["mode=L"].tolist() == list(range(12)) and len(parts["size=small"]) == 30
    assert slices(dataset, replace(DOMAIN, slices=("caption",))) == {}  # sixty captions of one row each


def test_rows_that_came_with_the_version_are_a_slice(home, tmp_path, monkeypatch):
    dataset = a_dataset(tmp_path, labeled(30), source="captures:general", parents=["general/v1"])
    parent = dataset.frame.iloc[:20]
    monkeypatch.setattr(versioning, "find", lambda name, domain: name)
    monkeypatch.setattr(versioning, "read_manifest", lambda name: parent)
    parts = slices(dataset, replace(DOMAIN, slices=()))
    assert parts["old"].tolist() == list(range(20)) and parts["new"].tolist() == list(range(20, 30))


def test_a_domain_with_an_unknown_slice_or_corruption_is_refused():
    make = partial(Domain, "trees", "Trees", ("a {}",), "a {}")
    with pytest.raises(ValueError, match=r"no slice color; known: size, mode"):
        make(slices=("color",))
    with pytest.raises(ValueError, match=r"no corruption rain; known: noise"):
        make(corruptions=("rain",))


# Corruptions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Smooth waves: what blur, pixels and turns change little by little."""
    y, x = np.mgrid[:96, :96] / 96
    grain = 12 * (np.indices((96, 96)).sum(axis=0) % 2)
    waves = [np.sin(5 * x * k + y) * 60 + 100 + 40 * y + grain for k in (1, 2, 3)]
    return np.stack(waves).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_worse_with_severity_and_the_same_for_the_same_row(photo, name):
    made = [corruptions.corrupt(photo, name, s, "row 1") for s in range(1, corruptions.SEVERITIES + 1)]
    assert all(m.shape == photo.shape and m.dtype == np.uint8 for m in made)
    change = [np.abs(m.astype(int) - photo).mean() for m in made]
    assert change[0] > 0 and change == sorted(change), change
    assert (corruptions.corrupt(photo, name, 3, "row 1") == made[2]).all()


def test_noise_differs_from_row_to_row_and_a_turn_goes_either_way(photo):
    noise = [corruptions.corrupt(photo, "noise", 1, f"row {i}") for i in range(2)]
    assert (noise[0] != noise[1]).mean() > 0.5
    turned = {corruptions.corrupt(photo, "rotation", 5, f"row {i}").tobytes() for i in range(12)}
    assert len(turned) == 2


def test_parameters_are_those_of_the_paper(photo):
    flat = np.full((3, 64, 64), 100, np.uint8)
    noisy = corruptions.corrupt(flat, "noise", 1, "k").astype(float)
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.03)
    assert np.abs(corruptions.corrupt(flat, "brightness", 1, "k") - 125.5).max() == 0.5  # 100 + 0.1 of 255
    assert (corruptions.corrupt(np.zeros((3, 8, 8), np.uint8), "brightness", 2, "k") == 51).all()
    half = np.stack([np.arange(256, dtype=np.uint8).repeat(256).reshape(256, 256)] * 3)
    assert corruptions.corrupt(half, "contrast", 1, "k").std() == pytest.approx(0.4 * half.std(), rel=0.01)


def test_robustness_is_a_table_of_the_domains_corruptions(clip, dataset, monkeypatch):
    monkeypatch.setattr(robustness, "ROWS", 24)
    found = robustness.score(clip, task(dataset), "balanced_accuracy", names=("noise", "jpeg"), severities=2)
    assert found.rows == 24 and set(found.corruptions) == {"noise", "jpeg"}
    values = [v for some in found.corruptions.values() for v in some]
    assert len(values) == 4 and found.mean_corruption_score == pytest.approx(np.mean(values))
    assert found.clean == zero_shot.predict(clip, task(dataset), limit=24).sums("balanced_accuracy").value
    assert found == robustness.score(clip, task(dataset), "balanced_accuracy", names=("noise", "jpeg"), severities=2)


# Forgetting -----------------------------------------------------------------------------------------------------------


def test_the_everyday_set_has_hundreds_of_things_with_names_of_their_own():
    things = forgetting.general_set()
    assert things is not None and "CC-BY" in things.license
    assert 300 <= len(things.texts) <= 1000 and len(set(things.texts)) == len(things.texts)
    assert {"a picture of a cat.", "a picture of a banana.", "a picture of a hammer.", "a picture of a bicycle."} <= set(
        things.texts
    )
    images = things.take(48, "crop", np.arange(30))
    assert images.shape == (30, 3, 48, 48) and images.dtype == torch.uint8
    assert (images[:, :, 0, 0] == 255).all() and len({p.numpy().tobytes() for p in images}) == 30


def test_one_half_of_the_set_chooses_and_the_other_is_reported(clip):
    whole, chooses, reported = (forgetting.general_set(part=part) for part in ("all", "selection", "report"))
    assert set(chooses.texts) | set(reported.texts) == set(whole.texts) and not set(chooses.texts) & set(reported.texts)
    assert 0.4 < len(chooses.texts) / len(whole.texts) < 0.6 and len({chooses.name, reported.name, whole.name}) == 3
    at = np.array([3, 0])
    rows = np.array([whole.texts.index(reported.texts[i]) for i in at])
    assert torch.equal(reported.take(32, "crop", at), whole.take(32, "crop", rows))
    assert forgetting.score(clip, SIDE, part="selection").rows == len(chooses.texts)
    assert forgetting.compare({"start": clip}, SIDE, part="report")["start"].set == reported.name


@pytest.mark.slow
def test_the_starter_knows_everyday_things(home):
    from clipft_tasks.model import build

    clip = build.from_folder(starter.build(), source="starter")
    seen = forgetting.embed(clip, 96)
    found = forgetting.score(clip, 96, now=seen)
    assert found.low > 2 * 0.1 and found.low <= found.value <= found.high, found  # by chance 0.1
    shuffled = forgetting.Embeddings(seen.image.roll(7, 0), seen.text)
    assert forgetting.score(clip, 96, now=shuffled).value < 0.15


def test_ten_way_accuracy_is_what_draws_say():
    rng = np.random.default_rng(0)
    ahead = np.array([0.0, 3, 20])
    drawn = [[np.all(rng.permutation(39)[:9] >= a) for _ in range(4000)] for a in ahead]
    assert forgetting._beats(ahead, 40) == pytest.approx(np.mean(drawn, axis=1), abs=0.02)
    assert forgetting._beats(np.array([np.inf]), 40)[0] == 0


def test_a_model_that_says_the_same_of_everything_knows_nothing(clip):
    n = len(forgetting.general_set().texts)
    same = forgetting.Embeddings(torch.ones(n, 32), torch.ones(n, 32))
    assert forgetting.score(clip, SIDE, now=same).value == 0  # ties count against it
    perfect = torch.nn.functional.normalize(torch.randn(n, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert forgetting.score(clip, SIDE, now=forgetting.Embeddings(perfect, perfect)).value == 1


def test_features_that_did_not_move_have_no_drift(clip):
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert forgetting.cosine_to_start(forgetting.Embeddings(x, x), forgetting.Embeddings(2 * x, x)) == pytest.approx(
        {"image": 1, "text": 1}
    )
    assert forgetting.cosine_to_start(forgetting.Embeddings(-x, x), forgetting.Embeddings(x, x))["image"] == pytest.approx(-1)
    assert forgetting.cosine_to_start(forgetting.Embeddings(x[:, :4], x), forgetting.Embeddings(x, x)) == {}


def test_without_its_packages_forgetting_is_left_out_and_said(clip, monkeypatch, capsys):
    monkeypatch.setattr(forgetting, "_folder", lambda package, inside: None)
    forgetting.general_set.cache_clear()
    try:
        assert forgetting.score(clip, SIDE) is None and forgetting.compare({"start": clip}, SIDE) == {}
        assert "not installed" in capsys.readouterr().out
    finally:
        forgetting.general_set.cache_clear()


def test_a_dataset_version_may_be_what_must_not_be_forgotten(clip, dataset, monkeypatch):
    monkeypatch.setattr(versioning, "find", lambda tag, domain: tag)
    monkeypatch.setattr(versioning, "fetch", lambda tag: dataset)
    forgetting.general_set.cache_clear()
    found = forgetting.compare({"start": clip, "candidate": clip}, SIDE, "general/v1")
    assert found["candidate"].rows == 60 and found["candidate"].set == "general/v1"
    assert found["candidate"] == found["start"] and found["candidate"].cosine_to_start["image"] == pytest.approx(1)
    forgetting.general_set.cache_clear()

"""Classes fitted to a few images: heads against their formulas, and the choice between them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import few_shot_choice
from clipft_tasks.train.class_heads import Shots, linear, means, text, whitened
from clipft_tasks.train.few_shot_choice import HEADS, HeldOutFolds, choose, mean_and_error, out_of_fold

CLASSES, WIDTH = 4, 24


def made(shots: int, *, told: float = 1.0, seed: int = 0, classes: int = CLASSES) -> tuple[Shots, Shots]:
    """Shots, and many other images of the same classes; texts know the classes by `told`."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, WIDTH))
    common = 4 * rng.normal(size=WIDTH)  # all images lie in one direction, as those of real towers do

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = np.repeat(np.arange(classes), count)
        features = common + centers[labels] + 1.2 * rng.normal(size=(len(labels), WIDTH))
        return normalize(torch.tensor(features), dim=1), torch.tensor(labels)

    texts = normalize(torch.tensor(told * centers + 2 * rng.normal(size=centers.shape)), dim=1)
    return Shots(*images(shots), texts, 20.0), Shots(*images(100), texts, 20.0)


def right(shots: Shots, embeddings: torch.Tensor) -> float:
    return float(((shots.features @ embeddings.T).argmax(1) == shots.labels).double().mean())


def test_the_linear_head_is_the_most_likely_one_under_its_prior():
    shots, _ = made(5)
    head = linear(shots, 2.0)
    center = shots.features.mean(0)
    moved = (shots.scale * (head - shots.texts)).requires_grad_()
    # The same written without bias, basis or roots: D f' + b, f' centered, with b what D says of the center.
    offset = (moved @ center)[:, None]
    direction = moved - offset * center / center.square().sum()
    start = shots.scale * shots.features @ shots.texts.T
    assert torch.allclose(shots.scale * shots.features @ head.T, start + shots.features @ moved.T)
    free = torch.zeros(CLASSES, WIDTH + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    inputs = torch.cat([shots.features - center, torch.ones(len(shots.labels), 1)], 1)

    def loss():
        optimizer.zero_grad()
        found = cross_entropy(start + inputs @ free.T, shots.labels, reduction="sum") + free.square().sum() / 8
        found.backward()
        return found

    optimizer.step(loss)
    expected = start + inputs @ free.detach().T
    # What carries the bias has a product of about one with each image, not of exactly one.
    torch.testing.assert_close(shots.scale * shots.features @ head.T, expected, rtol=0.05, atol=0.3)
    assert direction.shape == (CLASSES, WIDTH)


def test_means_are_the_cache_of_tip_adapter_with_a_linear_kernel():
    shots, other = made(3)
    found = other.scale * other.features @ (means(shots, 8.0) - shots.texts).T
    cache = 8.0 * other.features @ shots.features.T @ one_hot(shots.labels).double() / 3
    mean = torch.stack([shots.features[shots.labels == c].mean(0) for c in range(CLASSES)])
    bias = 8.0 * (mean.square().sum(1) - mean.mean(0).square().sum()) / 2
    expected = cache - bias
    # Equal up to what is common to all classes of an image, and to the bias's carrier.
    found, expected = (x - x.mean(1, keepdim=True) for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("head", [means, linear, whitened])
def test_a_head_ends_at_the_texts_where_it_may_not_move_and_learns_where_it_may(head):
    shots, other = made(16, told=0.8)
    torch.testing.assert_close(head(shots, 1e-6), shots.texts, rtol=0, atol=1e-4)
    before = right(other, shots.texts)
    assert right(other, head(shots, 64.0 if head is means else 8.0)) > before + 0.1
    assert head(shots, 8.0).shape == shots.texts.shape


@pytest.mark.parametrize("head", [means, linear, whitened])
def test_a_class_without_images_stays_as_its_text_says(head):
    shots, _ = made(4)
    some = shots.take(shots.labels != 2)
    moved = head(some, 4.0)
    assert torch.equal(moved[2], shots.texts[2]) and not torch.allclose(moved[0], shots.texts[0], atol=1e-3)


def test_one_image_a_class_has_no_spread_to_take_out():
    shots, _ = made(1)
    torch.testing.assert_close(whitened(shots, 2.0), linear(shots, 2.0))


def test_groups_are_held_out_whole_and_classes_spread():
    rng = np.random.default_rng(0)
    labels, groups = np.repeat(np.arange(3), 8), np.array([f"g{i}" for i in rng.integers(0, 10, 24)])
    folds = HeldOutFolds.of(labels, groups)
    assert 2 <= folds.count <= few_shot_choice.FOLDS
    assert all(len(set(folds.fold[groups == name])) == 1 for name in set(groups))
    for fold in set(folds.fold):
        there = folds.fold == fold
        assert all(label in labels[~there] for label in labels[there & folds.judged])
    assert folds.judged.mean() > 0.7


def test_no_image_is_judged_by_a_head_that_saw_it():
    shots, _ = made(4)
    folds = HeldOutFolds.of(shots.labels.numpy(), np.arange(16).astype(str))
    seen = []

    def watched(some: Shots, strength: float) -> torch.Tensor:
        seen.append({tuple(row.tolist()) for row in some.features})
        return some.texts

    out_of_fold(shots, folds, watched, 1.0)
    for fold, known in zip(np.unique(folds.fold), seen, strict=True):
        held = shots.features[torch.from_numpy(folds.fold == fold)]
        assert len(held) and not known & {tuple(row.tolist()) for row in held}


def test_images_that_say_more_than_the_texts_are_followed():
    shots, other = made(16, told=0.0)
    found = choose(shots, np.arange(64).astype(str))
    assert found.method != "text" and found.folds == 5 and found.shots == (16, 16)
    assert {tried.method for tried in found.tried} == set(HEADS)
    head, _ = HEADS[found.method]
    assert right(other, head(shots, found.strength)) > right(other, shots.texts) + 0.3


@pytest.mark.parametrize("shots", [2, 8])
def test_texts_that_know_the_classes_are_not_left_for_something_worse(shots):
    for seed in range(3):
        few, other = made(shots, told=9.0, seed=seed)
        found = choose(few, np.arange(len(few.labels)).astype(str))
        head, _ = HEADS[found.method]
        assert right(other, head(few, found.strength)) >= right(other, few.texts) - 0.01


def test_of_ways_that_held_out_images_do_not_tell_apart_the_simplest_is_taken(monkeypatch):
    shots, _ = made(8, told=0.0)
    ways = dict.fromkeys(["text", "means", "linear"], HEADS["means"])  # all the same, but by name
    monkeypatch.setattr(few_shot_choice, "HEADS", ways)
    groups = np.arange(len(shots.labels)).astype(str)
    found = choose(shots, groups)
    assert found.method == "means" and "simplest" in found.reason and "no more than chance" in found.reason
    known = Shots(shots.features, shots.labels, means(shots, 64.0), shots.scale)
    assert choose(known, groups).method == "text"
    sure = 12.0 * one_hot(shots.labels).double().numpy()
    assert choose(shots, groups, trained={"lora": lambda folds: sure}).method == "lora"  # the last, and certainly the best


@pytest.mark.parametrize("told", [-1.0, 9.0])
@pytest.mark.parametrize("groups", ["one image", "one group"])
def test_where_nothing_can_be_held_out_it_says_so_and_stays_unless_the_texts_know_nothing(groups, told):
    shots, _ = made(1 if groups == "one image" else 5, classes=10, told=told)
    names = np.arange(len(shots.labels)) if groups == "one image" else shots.labels.numpy()
    found = choose(shots, names.astype(str))
    assert (found.method, found.strength) == (few_shot_choice.UNTESTED if told < 0 else ("text", 0.0))
    assert found.folds == 0 and not found.tried and "nothing can be held out" in found.reason


def test_a_training_is_chosen_where_it_is_better():
    shots, _ = made(6, told=0.2)
    sure = 12.0 * one_hot(shots.labels).double().numpy()
    found = choose(shots, np.arange(24).astype(str), trained={"lora": lambda folds: sure, "recipe": lambda folds: -sure})
    assert found.method == "lora" and found.tried[-1].score == 0.0


def test_the_error_of_a_mean_counts_groups():
    values, labels = np.array([1.0, 1.0, -1.0, -1.0]), np.zeros(4, int)
    mean, alone = mean_and_error(values, labels, np.array(list("abcd")))
    _, together = mean_and_error(values, labels, np.array(list("aabb")))
    assert mean == 0 and together == pytest.approx(alone * (3 / 2) ** 0.5 / 1.0 * (4 / 3) ** 0.5, rel=0.3) and together > alone
    assert text(made(1)[0], 3.0) is not None


@pytest.mark.parametrize(
    "field", [{"tune.trials": 3}, {"blend.points": 5}, {"train.lora_rank": 4}, {"objective.dimensions": [8]}], ids=str
)
def test_what_has_no_use_is_refused(field):
    with pytest.raises(ClipftError) as refused:
        RunSpec.from_flat({"domain": "general", "train.method": "few_shot", **field})
    assert refused.value.code == "spec.invalid" and next(iter(field)) in str(refused.value)

"""Which epoch's weights a run ends with, and that a killed run ends with the same."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import a_plan, a_work
from fixtures.errors import refuses

from clipft_tasks.data import versioning
from clipft_tasks.domains import get_domain
from clipft_tasks.model import build
from clipft_tasks.spec import RunSpec
from clipft_tasks.train import launch as jobs
from clipft_tasks.train import loop, validation
from clipft_tasks.train.best_epoch import BestEpoch

PER_EPOCH = 3  # steps of the made data set


class KilledError(Exception):
    pass


def changed(spec: RunSpec, **fields: object) -> RunSpec:
    return RunSpec.from_flat(spec.flat() | {k.replace("__", "."): v for k, v in fields.items()})


def weights(state):
    return {name: value.detach().clone() for name, value in state.items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Judge:
    """Gives each epoch the score that a test wants it to have, and remembers the weights that it was shown."""

    def __init__(self, scores, steps=100):
        self.scores, self.steps, self.shown, self.clip = list(scores), steps, [], None

    def __call__(self, batch):
        self.shown.append(weights(self.clip.state()))
        return self.answer(self.scores[len(self.shown) - 1])

    def answer(self, score):
        right = np.arange(self.steps) < round(score * self.steps)
        everything = np.zeros(self.steps, int)
        rows = validation.ValidationRows("image_to_text_r1", np.arange(self.steps), everything, everything, [], True)
        return validation.ValidationResult(rows, right)


def trained(spec, dataset, folder, judge, kill_at=None, seen=0, **how):
    """Train in `folder`; `seen`: epochs that the judge is past when this process begins."""
    clip = build.prepare(build.load(spec.model.start), spec)
    judge.clip, judge.shown = clip, [None] * seen
    rows = []
    work = a_work(spec, clip, dataset, folder, rows.extend, validate=judge, **how)
    if kill_at is not None:
        whole = work.data.batch

        def dying(step, *args, **kwargs):
            if step == kill_at:
                raise KilledError
            return whole(step, *args, **kwargs)

        object.__setattr__(work.data, "batch", dying)
    metrics = loop.train(work)
    return weights(clip.state()), metrics, rows


VARIANTS = {
    "plain": {},
    "average": {"train__ema": 0.9},
    "progressive": {"resolution__schedule": "progressive", "resolution__train": 48, "resolution__sizes": [32]},
    "hyperbolic, averaged": {"objective__similarity": "hyperbolic", "train__ema": 0.9},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_best_epoch_is_kept_as_it_was_judged(dataset, small_spec, tmp_path, variant):
    judge = Judge([0.5, 0.8, 0.8, 0.7])
    end, metrics, rows = trained(changed(small_spec, **VARIANTS[variant]), dataset, tmp_path, judge)
    assert metrics["kept_epoch"] == 3 and metrics["steps"] == 4 * PER_EPOCH  # of equals the later
    assert same(end, judge.shown[2]) and not same(end, judge.shown[3])
    logged = {n: f["val.score"] for n, f in rows if "val.score" in f}
    assert logged == {(i + 1) * PER_EPOCH - 1: pytest.approx(s) for i, s in enumerate(judge.scores)}


def test_the_best_epoch_of_low_rank_training_is_kept_merged(dataset, small_spec, tmp_path):
    spec, images = changed(small_spec, train__lora_rank=4), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    shown = []

    class Asking(Judge):
        def __call__(self, batch):
            shown.append(self.clip.encode_images(images).detach())
            return super().__call__(batch)

    clip = build.load(spec.model.start)
    judge = Asking([0.5, 0.8, 0.7, 0.6])
    judge.clip = clip
    loop.train(a_work(spec, clip, dataset, tmp_path, validate=judge))
    now = clip.encode_images(images)
    # The update beside its weight, and within it: the same sum, rounded in another order.
    assert torch.allclose(now, shown[1], atol=1e-5) and not torch.allclose(now, shown[3], atol=1e-5)
    assert clip.state().keys() == build.load(spec.model.start).state().keys()


def test_in_half_precision_the_best_is_kept_too(dataset, small_spec, tmp_path):
    judge = Judge([0.5, 0.8, 0.7, 0.7])
    end, metrics, _ = trained(small_spec, dataset, tmp_path, judge, plan=a_plan(precision="fp16"))
    assert metrics["kept_epoch"] == 2 and same(end, judge.shown[1])


def test_the_last_is_kept_on_request(dataset, small_spec, tmp_path):
    judge = Judge([0.5, 0.8, 0.7, 0.6])
    end, metrics, _ = trained(changed(small_spec, train__keep="last"), dataset, tmp_path, judge)
    assert metrics["kept_epoch"] == 4 and same(end, judge.shown[3])


def test_judging_changes_nothing_of_the_training(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__keep="last", train__epochs=2, train__ema=0.9)
    real = Real(dataset, spec)
    judged, _, _ = trained(spec, dataset, tmp_path / "a", real)
    alone = build.prepare(build.load(spec.model.start), spec)
    loop.train(a_work(spec, alone, dataset, tmp_path / "b"))
    assert same(judged, alone.state())


class Real(Judge):
    """What training really asks."""

    def __init__(self, dataset, spec):
        super().__init__([])
        self.dataset, self.spec = dataset, spec

    def __call__(self, batch):
        return validation.evaluate_on_validation(self.clip, self.dataset, self.spec.resolution.train, batch)


@pytest.mark.parametrize("kill_at", [5, 6, 9])
def test_a_killed_run_keeps_what_the_unbroken_one_keeps(dataset, small_spec, tmp_path, kill_at):
    spec = changed(small_spec, train__checkpoint_seconds=0, train__ema=0.9)
    scores = [0.5, 0.8, 0.6, 0.7]
    unbroken, metrics, _ = trained(spec, dataset, tmp_path / "a", Judge(scores))
    with pytest.raises(KilledError):
        trained(spec, dataset, tmp_path / "b", Judge(scores), kill_at=kill_at)
    # Steps are prepared a few ahead, so the kill comes no later than the step that it names.
    state = torch.load(sorted((tmp_path / "b").glob("step-*.pt"))[-1], weights_only=True)
    seen = state["step"] // PER_EPOCH
    assert 0 < state["step"] <= kill_at
    resumed, again, _ = trained(spec, dataset, tmp_path / "b", Judge(scores), seen=seen)
    assert again["kept_epoch"] == metrics["kept_epoch"] == 2
    assert same(unbroken, resumed)


def test_early_stopping_looks_at_the_same_score(dataset, small_spec, tmp_path):
    spec = changed(small_spec, train__epochs=50, train__patience=2)
    judge = Judge([0.3, 0.9, 0.8, 0.85])
    stopped, metrics, rows = trained(spec, dataset, tmp_path, judge)
    assert len(rows) == metrics["steps"] == 4 * PER_EPOCH and metrics["kept_epoch"] == 2
    assert same(stopped, judge.shown[1])
    again, metrics, rows = trained(spec, dataset, tmp_path, Judge([]))  # nothing is trained or judged again
    assert same(stopped, again) and metrics["steps"] == 4 * PER_EPOCH and not rows


def test_an_epoch_over_the_forgetting_budget_is_not_the_best(dataset, small_spec, tmp_path):
    known = iter([0.9, 0.85, 0.8, 0.4, 0.82])  # of the start model first
    judge = Judge([0.5, 0.7, 0.9, 0.6])
    spec = changed(small_spec, train__max_forgetting=0.15)
    end, metrics, rows = trained(spec, dataset, tmp_path, judge, general_score=lambda: next(known))
    assert metrics["kept_epoch"] == 2 and same(end, judge.shown[1])
    assert [f["val.general_score"] for _, f in rows if "val.general_score" in f] == [0.85, 0.8, 0.4, 0.82]


def test_a_killed_run_remembers_what_the_start_model_knew(dataset, small_spec, tmp_path):
    spec, judge = changed(small_spec, train__max_forgetting=0.15, train__checkpoint_seconds=0), Judge([0.5, 0.7, 0.9, 0.6])
    known = iter([0.9, 0.85, math.nan])
    with pytest.raises(KilledError):
        trained(spec, dataset, tmp_path, judge, kill_at=4, general_score=lambda: next(known))
    assert torch.load(sorted(tmp_path.glob("step-*.pt"))[-1], weights_only=True)["best"]["start"] == 0.9
    rest = iter([0.8, 0.4, 0.82])
    _, metrics, _ = trained(spec, dataset, tmp_path, judge, seen=1, general_score=lambda: next(rest))
    assert metrics["kept_epoch"] == 2


def test_where_every_epoch_forgot_too_much_the_one_that_forgot_least_is_kept():
    best = BestEpoch(True, 0, 0.1)
    best.start, answer = 0.9, Judge([]).answer
    for epoch, (score, known) in enumerate([(0.5, 0.6), (0.6, 0.7), (0.9, 0.5)], 1):
        best.note(epoch, answer(score), known, {})
    assert best.epoch == 2
    best.note(4, answer(0.1), 0.85, {})  # the first within the budget beats them all
    assert best.epoch == 4


def job(spec, dataset, folder, **plan):
    folder.mkdir(parents=True)
    return jobs.Job(spec=spec, plan=a_plan(**plan), start=spec.model.start, dataset=dataset.version.tag, key="k", folder=folder)


def test_two_processes_keep_what_one_keeps(dataset, small_spec, tmp_path):
    kept = {}
    for count in (1, 2):
        clip = build.prepare(build.load(small_spec.model.start), small_spec)
        metrics = jobs.train(job(small_spec, dataset, tmp_path / str(count), processes=count), clip, lambda rows: None)
        kept[count] = metrics["kept_epoch"], clip.state()
        best = torch.load(sorted((tmp_path / str(count)).glob("checkpoints/*.pt"))[-1], weights_only=True)["best"]
        assert best["epoch"] == metrics["kept_epoch"] and same(best["weights"], clip.state())
    assert kept[1][0] == kept[2][0]
    start = build.load(small_spec.model.start).state()
    moved = torch.cat([(kept[1][1][n] - start[n]).flatten() for n in start])
    apart = torch.cat([(kept[1][1][n] - kept[2][1][n]).flatten() for n in start])
    assert apart.norm() < 0.01 * moved.norm()


def test_rows_that_tell_nothing_leave_the_last(dataset, small_spec, tmp_path, capsys, monkeypatch):
    dull = dataset.frame.assign(label="", caption="an image.")
    fetch = versioning.fetch
    monkeypatch.setattr(jobs.versioning, "fetch", lambda v: with_frame(fetch(v), dull))
    spec = changed(small_spec, train__epochs=2, objective__name="multi_positive")
    clip = build.prepare(build.load(spec.model.start), spec)
    metrics = jobs.train(job(spec, dataset, tmp_path / "j"), clip, lambda rows: None)
    assert metrics["kept_epoch"] == 2 and "the last is kept" in capsys.readouterr().out


def with_frame(dataset, frame):
    out = replace(dataset)
    object.__setattr__(out, "frame", frame)
    return out


def test_a_budget_without_a_general_set_says_what_to_do(dataset, small_spec, monkeypatch):
    from clipft_tasks.evaluate import forgetting

    monkeypatch.setattr(forgetting, "general_set", lambda name: None)
    with refuses("domain.no_general_set", "train.max_forgetting"):
        validation.general_score(build.load(small_spec.model.start), get_domain("general"), 32)

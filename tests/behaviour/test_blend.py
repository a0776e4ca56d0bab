"""The blend stage by hand: on a tiny model, in a real MLflow, with scores that are known functions of the weights."""

import numpy as np
import pytest
import torch
from fixtures.errors import refuses
from safetensors.torch import load_file

from clipft_tasks import tracking
from clipft_tasks.evaluate import interpolation
from clipft_tasks.model import build, recorded_answers
from clipft_tasks.model.interpolation import between, starting_point
from clipft_tasks.model.package import WEIGHTS, read_card, read_recorded_answers, weights_digest
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import blend, chain
from clipft_tasks.train import validation


def changed(spec: RunSpec, **fields: object) -> RunSpec:
    return RunSpec.from_flat(spec.flat() | {k.replace("__", "."): v for k, v in fields.items()})


def go(spec: RunSpec, results: dict, last: str) -> dict:
    for name in chain.stages_of(spec):
        if name not in results:
            results[name] = chain.run_stage(name, spec, results.__getitem__)
        if name == last:
            return results[name]
    raise AssertionError(last)


def candidate(run_id: str):
    return build.from_folder(tracking.fetch_candidate(run_id), source="candidate")


class Known:
    """Score and general score as functions of how far the weights are on the way, which is read off the weights."""

    def __init__(self, score, general_score):
        self.score, self.general_score = score, general_score

    def between(self, start, end):
        name = max(end, key=lambda n: float((end[n] - start[n]).abs().max()) if end[n].is_floating_point() else 0.0)
        self.name, self.start, self.whole = name, start[name], float((end[name] - start[name]).norm())
        return self

    def share(self, clip):
        return float((clip.state()[self.name].cpu() - self.start).norm()) / self.whole

    def judge(self, clip, dataset, side, batch, metric):
        right = np.arange(1000) < round(1000 * self.score(self.share(clip)))
        rows = validation.ValidationRows(
            "image_to_text_r1", np.arange(1000), np.zeros(1000, int), np.zeros(1000, int), [], True
        )
        return validation.ValidationResult(rows, right)

    def know(self, clip, domain, side):
        return self.general_score(self.share(clip))


@pytest.fixture
def known(monkeypatch):
    def use(start, end, score, general_score):
        made = Known(score, general_score).between(start.state(), end.state())
        monkeypatch.setattr(validation, "evaluate_on_validation", made.judge)
        monkeypatch.setattr(validation, "general_score", made.know)

    return use


def early_gain(share):  # 94% of the gain half-way
    return 0.5 + 0.4 * (1 - (1 - share) ** 4)


def late_loss(share):  # 25% of the forgetting half-way
    return 0.8 - 0.2 * share**2


@pytest.fixture
def spec(small_spec, monkeypatch):
    monkeypatch.setattr(validation, "require_general_set", lambda domain: "a set of the test")
    return changed(small_spec, train__epochs=2, blend__points=4)


def test_off_it_leaves_the_candidate_and_touches_nothing(shared_home):
    result = blend.run(RunSpec.from_flat({"domain": "general"}), "a run that nobody knows")
    assert result.run_id == "a run that nobody knows" and result.alpha == 1 and result.curve == []


def test_the_chosen_point_is_what_is_evaluated_and_registered(shared_home, spec, known):
    results: dict = {}
    trained = go(spec, results, "finetune")["run_id"]
    start, end = build.prepare(build.load(spec.model.start), spec), candidate(trained)
    known(start, end, early_gain, late_loss)
    made = go(spec, results, "blend")
    assert made["alpha"] == 0.5 and "94% of the gain at 25% of the forgetting" in made["reason"]
    assert [round(p["score"], 3) for p in made["curve"]] == [0.5, 0.773, 0.875, 0.898, 0.9]
    assert made["run_id"] != trained and made["key"]

    clip, folder = candidate(made["run_id"]), tracking.fetch_candidate(made["run_id"])
    expected = between(start.state(), end.state(), 0.5)
    assert all(torch.equal(clip.state()[n], expected[n]) for n in expected)
    card = read_card(folder)
    assert card.blend.alpha == 0.5 and card.blend.parents == [spec.model.start, f"run {trained}"]
    assert card.run_id == made["run_id"] and card.start == spec.model.start
    # Answers and reference are the blended model's own, not its parent's.
    recorded, parents = (read_recorded_answers(f) for f in (folder, tracking.fetch_candidate(trained)))
    assert recorded.similarity != parents.similarity
    images = images_of(recorded)
    assert recorded_answers.disagreement(recorded, recorded_answers.answers(clip, images, recorded.texts)) < 1e-4
    assert weights_digest(folder / WEIGHTS) in (folder / "reference.json").read_text()

    run = tracking.client().get_run(made["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == trained and run.info.status == "FINISHED"
    for run_id in (trained, made["run_id"]):
        files = {f.path for f in tracking.client().list_artifacts(run_id, "blend")}
        assert files == {"blend/curve.png", "blend/curve.svg", "blend/table.md"}
        assert len(tracking.client().get_metric_history(run_id, "blend.score")) == 5
    assert go(spec, results, "register")["new"]
    version = tracking.client().get_model_version("clipft-general", results["register"]["version"])
    assert version.run_id == made["run_id"]

    again: dict = {}
    assert go(spec, again, "blend") == made


def images_of(recorded):
    import base64
    import io

    from PIL import Image

    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p)))) for p in recorded.images]
    return np.stack([p.transpose(2, 0, 1) for p in decoded])


def test_killed_after_the_model_was_made_it_makes_no_second_one(shared_home, spec, known, monkeypatch):
    results: dict = {}
    spec = changed(spec, train__seed=1)
    trained = go(spec, results, "finetune")["run_id"]
    known(build.prepare(build.load(spec.model.start), spec), candidate(trained), early_gain, late_loss)
    whole = interpolation.plot

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(interpolation, "plot", killed)
    with pytest.raises(KeyboardInterrupt):
        blend.run(spec, trained)
    monkeypatch.setattr(interpolation, "plot", whole)
    made = blend.run(spec, trained)
    experiment = tracking.get_or_create_experiment("clipft-general")
    found = tracking.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{trained}'")
    assert [r.info.run_id for r in found] == [made.run_id]


def test_where_nothing_is_forgotten_the_candidate_stays(shared_home, spec, known):
    results: dict = {}
    trained = go(spec, results, "finetune")["run_id"]
    known(build.prepare(build.load(spec.model.start), spec), candidate(trained), early_gain, lambda share: 0.8)
    spec = changed(spec, blend__points=3)
    made = blend.run(spec, trained)
    assert made.alpha == 1.0 and made.run_id == trained and len(made.curve) == 4
    assert "nothing forgotten" in made.reason
    assert blend.run(spec, trained) == made


@pytest.mark.parametrize("change", [{"resolution__train": 48}, {"model__context": 24}, {"model__patch": 16}])
def test_a_start_model_of_another_shape_is_prepared_as_it_was_for_training(shared_home, spec, known, change):
    spec = changed(spec, **change)
    trained = go(spec, {}, "finetune")["run_id"]
    start, end = build.prepare(build.load(spec.model.start), spec), candidate(trained)
    known(start, end, early_gain, late_loss)
    made = blend.run(spec, trained)
    expected = between(start.state(), end.state(), 0.5)
    assert made.alpha == 0.5
    assert all(torch.equal(w, expected[n]) for n, w in candidate(made.run_id).state().items())
    assert candidate(made.run_id).side == spec.resolution.train


def test_what_the_similarity_learned_goes_into_the_package(shared_home, spec, known):
    """The start model knew cosines only, so the candidate's matrix stays; from a champion that has one, it moves too."""
    spec = changed(spec, objective__similarity="bilinear")
    trained = go(spec, {}, "finetune")["run_id"]
    start, end = build.prepare(build.load(spec.model.start), spec), candidate(trained)
    assert not torch.equal(end.similarity.between, torch.eye(end.embed_dim))
    known(start, end, early_gain, late_loss)
    made = blend.run(spec, trained)
    kept = load_file(tracking.fetch_candidate(made.run_id) / "similarity.safetensors")
    assert torch.equal(kept["between"], end.similarity.between)

    other = candidate(trained)
    other.similarity.between.data.mul_(3)
    assert torch.equal(starting_point(other, end)["similarity.between"], other.similarity.between)


def test_a_spec_that_needs_the_general_set_is_refused_before_training(shared_home, small_spec, monkeypatch):
    from clipft_tasks.evaluate import forgetting

    monkeypatch.setattr(forgetting, "general_set", lambda name: None)
    for more in ({"blend__points": 10}, {"train__max_forgetting": 0.1}):
        with refuses("domain.no_general_set", "blend.points"):
            go(changed(small_spec, **more), {}, "plan")

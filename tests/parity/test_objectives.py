"""Every objective and every similarity: exact in parts, in blocks, on two processes, in each precision; and what defines it."""

import json
import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from fixtures.errors import refuses
from fixtures.objectives import COMBINATIONS, PAIRS, TREE, VARIANTS, subject
from open_clip.loss import SigLipLoss

from clipft_tasks import objectives
from clipft_tasks.cli.main import main
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import similarity as similarities
from clipft_tasks.objectives import (
    Alignment,
    Cyclic,
    Distillation,
    Guided,
    HardNegative,
    InfoNCE,
    Margin,
    MultiPositive,
    Objective,
    Sigmoid,
    SoftTarget,
    make,
)
from clipft_tasks.spec import ObjectiveSpec, RunSpec
from clipft_tasks.spec.objective_catalog import AUXILIARY, OBJECTIVES, SIMILARITIES
from clipft_tasks.train import feature_checks, objective_checks, step_checks


@pytest.mark.parametrize(
    "name", [n for n in objective_checks.CHECKS if n != "operators"]
)  # those are audited with the rest of the model's
@pytest.mark.parametrize(("variant", "similarity"), COMBINATIONS)
def test_it_keeps_what_training_promises(variant, similarity, name):
    objective_checks.CHECKS[name](subject(variant, similarity))


@pytest.fixture(scope="module")
def shared(request):
    """Gradients of two processes, for all that the selected tests ask: starting the two takes longer than their steps."""
    asked = [
        i.callspec.params
        for i in request.session.items
        if i.path == request.path and getattr(i, "originalname", "") == IN_PROCESSES
    ]
    subjects = [subject(params["variant"], params["similarity"]) for params in asked]
    return step_checks.two_processes(case for s in subjects for case in step_checks.process_cases(s))


@pytest.mark.parametrize(("variant", "similarity"), COMBINATIONS)
def test_two_processes_have_the_gradient_of_one(shared, variant, similarity):
    found = [(case, gradient) for case, gradient in shared if case.objective == subject(variant, similarity).objective]
    assert len(found) == 4
    step_checks.in_processes(found)


IN_PROCESSES = test_two_processes_have_the_gradient_of_one.__name__


def test_every_objective_and_similarity_is_tried():
    assert {v.split()[0] for v in VARIANTS} == {*OBJECTIVES}
    assert {variant for variant, _ in PAIRS} == {*VARIANTS} and {similarity for _, similarity in PAIRS} == {*SIMILARITIES}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_catalog_says_of_each_objective_what_its_class_does(name):
    kind = objectives.objective_class(name)
    assert kind.auxiliary_only == (name in AUXILIARY)
    assert getattr(objectives, kind.__name__) is kind and kind.__name__ in objectives.__all__


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_catalog_names_each_similarity_as_its_class_does(name):
    assert similarities.make(name, 4).name == type(similarities.make(name, 4)).name == name


# --- what defines each


def given(rows: int = 6, **changes):
    """Pairs under the cosine whose captions all differ."""
    pairs = feature_checks.pairs(feature_checks.Subject(ObjectiveSpec()), rows, width=8)
    return replace(pairs, **{"captions": torch.arange(rows), "labels": torch.full((rows,), -1), **changes})


def value(objective: Objective, pairs) -> torch.Tensor:
    return feature_checks.total(objective.double(), pairs)


def test_without_hardness_hard_negatives_are_info_nce_and_with_it_more():
    pairs = given()
    torch.testing.assert_close(value(HardNegative(0), pairs), value(InfoNCE(), pairs))
    assert value(HardNegative(0.5), pairs) > value(HardNegative(0.1), pairs) > value(HardNegative(0), pairs)


def test_positives_are_no_negatives():
    """Where all rows say the same, nothing is to be told apart."""
    alike = given(captions=torch.zeros(6, dtype=torch.long))
    for objective in (HardNegative(), Margin(0.2)):
        assert value(objective, alike) == 0 and value(type(objective)(positives="pair"), alike) > 0


def test_sigmoid_is_open_clips_loss():
    pairs = given()
    bias = torch.tensor(-3.0, dtype=torch.float64)
    theirs = SigLipLoss()(pairs.image, pairs.text, pairs.scale, bias)
    torch.testing.assert_close(value(Sigmoid(bias=-3), pairs), theirs)  # its own
    torch.testing.assert_close(value(Sigmoid(), replace(pairs, bias=bias)), theirs)  # the model's


def test_sharp_soft_targets_are_multi_positive_by_label():
    pairs = feature_checks.pairs(feature_checks.Subject(ObjectiveSpec()), 7)
    objective = SoftTarget(tree=json.dumps(TREE), softness=0.01)
    objective.prepare(feature_checks.CLASSES)
    torch.testing.assert_close(value(objective, pairs), value(MultiPositive("label"), pairs))


def test_a_tree_says_how_alike_classes_are():
    objective = SoftTarget(tree=TREE)
    objective.prepare(feature_checks.CLASSES)
    expected = torch.tensor([[1, 2 * 2 / 6, 2 * 1 / 5], [2 * 2 / 6, 1, 2 * 1 / 5], [2 * 1 / 5, 2 * 1 / 5, 1]])
    torch.testing.assert_close(objective.classes, expected)


@pytest.mark.parametrize(
    ("tree", "why"),
    [({"a": "b", "b": "a"}, "circle"), ("{", "no JSON"), ("[1]", "child: parent"), ({"a": "x"}, "the class b, c")],
)
def test_what_is_no_tree_of_the_classes_is_refused(tree, why):
    with pytest.raises(ClipftError, match=why):
        make(ObjectiveSpec(name="soft_target", options={"tree": tree}), feature_checks.CLASSES)


def test_a_tree_needs_labels():
    with refuses("objective.needs_labels", "soft_target"):
        make(ObjectiveSpec(name="soft_target", options={"tree": TREE}))


def test_a_guide_that_strikes_out_nothing_leaves_info_nce():
    pairs = given()
    torch.testing.assert_close(value(Guided(margin=10), pairs), value(InfoNCE(), pairs))
    assert value(Guided(), pairs) < value(InfoNCE(), pairs)
    assert value(Guided(margin=-10), pairs) == 0  # then only the pair itself is left


def test_margin_by_hand():
    alike = torch.tensor([[0.5, 0.6, 0.1], [0.0, 0.9, 0.2], [0.3, 0.0, 0.4]], dtype=torch.float64)

    class Fixed(similarities.Cosine):
        def forward(self, image, text):
            return alike + 0 * (image @ text.T)

    pairs = given(3, similarity=Fixed(8))
    rows = {"hardest": [0.3, 0.0, 0.1], "semi_hard": [0.0, 0.0, 0.1], "all": [0.3, 0.0, 0.1]}  # images look for texts
    for negatives, expected in rows.items():
        got = value(Margin(0.2, negatives, text_weight=0), pairs)
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64).mean())


def test_margin_leaves_the_temperature_alone():
    pairs = given()
    assert torch.autograd.grad(value(Margin(), pairs), pairs.scale, allow_unused=True) == (None,)


def test_cyclic_is_zero_where_images_and_texts_agree():
    pairs = given()
    assert value(Cyclic(), pairs) > 0
    turned = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert value(Cyclic(), replace(pairs, text=pairs.image * 1)) < 1e-12
    assert value(Cyclic(cross=0), replace(pairs, text=pairs.image @ turned)) < 1e-12  # a turn keeps distances within


def test_alignment_is_zero_for_equal_distributions_and_empty_sides():
    pairs = given(6)
    twice = torch.cat([pairs.image, pairs.image])
    equal = replace(given(12), image=twice, new=torch.arange(12) < 6)
    for distance in ("coral", "mmd"):
        assert value(Alignment(distance), equal).abs() < 1e-12
        assert value(Alignment(distance), pairs) > 1e-3
        none = value(Alignment(distance), replace(pairs, new=torch.zeros(6, dtype=torch.bool)))
        assert none == 0 and none.requires_grad
    moved = replace(equal, image=torch.cat([pairs.image, pairs.image + 3]))
    assert value(Alignment("coral"), moved) < 1e-12 and value(Alignment("mmd"), moved) > 0.1  # covariances do not see a shift


def test_coral_is_the_distance_of_covariances():
    pairs = given(10, new=torch.arange(10) < 4)
    one, other = (torch.cov(part.T, correction=0) for part in (pairs.image[:4], pairs.image[4:]))
    expected = (one - other).square().sum() / (one.square().sum() + other.square().sum())
    torch.testing.assert_close(value(Alignment(), pairs), expected)


def test_distillation_is_zero_at_the_start_and_grows_with_the_way():
    pairs = given()
    start = replace(pairs, start=None)
    assert value(Distillation(features=1.0), replace(pairs, start=start)).abs() < 1e-12
    near = replace(pairs, start=start, image=torch.nn.functional.normalize(pairs.image + 0.01, dim=-1))
    assert 0 < value(Distillation(), near) < value(Distillation(), given())


def test_prefixes_are_asked_one_by_one():
    pairs = given()
    whole = make(ObjectiveSpec(dimensions=[2, 4, 8]))(pairs)["contrastive_loss"]
    parts = [InfoNCE()(pairs.prefix(width))["contrastive_loss"] for width in (2, 4, 8)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_weights_of_auxiliary_losses_follow_their_schedule():
    objective = make(ObjectiveSpec(auxiliary=["cyclic=0>2"], options={"cyclic.within": 0.0, "cyclic.cross": 1.0}))
    for progress in (0.0, 0.5, 1.0):
        pairs = given(progress=progress)
        terms = objective(pairs)
        if progress:
            torch.testing.assert_close(terms["cyclic_cross_loss"], 2 * progress * Cyclic(cross=1.0)(pairs)["cross_loss"])
        else:
            assert set(terms) == {"contrastive_loss"}


def test_what_teaches_nothing_alone_is_refused_alone():
    with refuses("objective.auxiliary_alone", "cyclic", "objective.auxiliary"):
        make(ObjectiveSpec(name="cyclic"))


def test_a_tree_may_be_written_in_the_spec():
    spec = RunSpec.from_flat(
        {"domain": "general", "objective.name": "soft_target", "objective.options": {"tree": TREE, "softness": 0.3}}
    )
    assert make(spec.objective, feature_checks.CLASSES).tree == TREE


# --- somebody else's

HEAD = """
import torch
from clipft_tasks.objectives import InfoNCE, Objective
class Mine(Objective):
    def forward(self, pairs):
"""
BAD = {
    'return {"my_loss": pairs.logits().logsumexp(dim=1)}': "shape .*not that of a scalar.*mean",
    "return pairs.logits().mean()": "returned Tensor, not a dict",
    'return {"mine": pairs.logits().mean()}': "does not end in _loss",
    'return {"my_loss": pairs.logits().mean().item()}': "is float, not a tensor.*item",
    'return {"my_loss": pairs.logits().detach().mean()}': "no term has a gradient",
    'return {"my_loss": pairs.logits().double().mean()}': "float64.*no fp64",
    'return {"my_loss": (pairs.image - pairs.text).norm(dim=1).log().mean()}': "finite: the loss is -inf on texts equal",
    'return {"my_loss": (pairs.logits() * pairs.logits().detach()).mean()}': "gradient is not that of its value",
    'return {"my_loss": (pairs.logits() * torch.rand(())).mean()}': "parts: fp32, at once: gradients are",
    'return {"my_loss": torch.linalg.eigvals(pairs.image.T @ pairs.text).abs().sum()}': "no kernel for linalg_eig",
    'return {"my_loss": pairs.alike().mean()}': "Pairs.alike: it is called `similarities` now",
    'return {"my_loss": pairs.image @ pairs.text}': r"form: RuntimeError: mat1.*\(theirs.*\.py, line 6\)",
}


def checked(tmp_path, monkeypatch, name: str, content: str, *options: str):
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return CliRunner().invoke(main, ["objective", "check", f"{name}:Mine", *options])


def test_a_good_objective_passes_all_checks(tmp_path, monkeypatch):
    content = "from clipft_tasks.objectives import InfoNCE\nclass Mine(InfoNCE):\n    pass\n"
    done = checked(tmp_path, monkeypatch, "theirs", content, "--similarity", "dot")
    assert done.exit_code == 0, done.output
    assert "keeps what training promises" in done.output and done.output.count(" ok") == len(objective_checks.ALL)


@pytest.mark.parametrize(("number", "body"), enumerate(BAD))
def test_a_bad_one_is_told_what_is_wrong(tmp_path, monkeypatch, number, body):
    content = HEAD + f"        {body}\n"
    done = checked(tmp_path, monkeypatch, f"theirs{number}", content, "--similarity", "cosine", "--skip", "processes")
    said = re.search(BAD[body], done.output)
    assert done.exit_code == 1 and said, done.output


def test_what_only_several_processes_show_is_found(tmp_path, monkeypatch):
    body = "        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0\n"
    body += '        return {"my_loss": pairs.logits().square().mean() * (1 + rank)}\n'
    options = [word for name in objective_checks.CHECKS for word in ("--skip", name)]
    done = checked(tmp_path, monkeypatch, "theirs_ranked", HEAD + body, "--similarity", "cosine", *options)
    assert done.exit_code == 1 and "in two processes: gradients are" in done.output


def test_an_objective_of_before_is_told_the_new_name_of_its_attribute(tmp_path, monkeypatch):
    content = "from clipft_tasks.objectives import InfoNCE\nclass Mine(InfoNCE):\n    beside = True\n"
    done = checked(tmp_path, monkeypatch, "theirs_of_before", content)
    assert done.exit_code == 1 and "theirs_of_before:Mine: `beside` is called `auxiliary_only` now" in done.output


def test_a_check_that_is_none_is_named():
    done = CliRunner().invoke(main, ["objective", "check", "info_nce", "--skip", "luck"])
    assert done.exit_code == 1 and "Known: form, finite" in done.output


def test_the_catalog_is_listed():
    done = CliRunner().invoke(main, ["objective", "list"])
    assert done.exit_code == 0 and all(name in done.output for name in OBJECTIVES) and "looks at the start model" in done.output

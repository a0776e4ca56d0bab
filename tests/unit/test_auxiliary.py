"""Objectives in the spec: what the catalog offers, and auxiliary losses as they are written, each with its weight and options."""

from pathlib import Path

import pytest
from fixtures.errors import refuses
from hypothesis import given
from hypothesis import strategies as st

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.objectives import make
from clipft_tasks.spec import RunSpec, form, objective_catalog
from clipft_tasks.spec.auxiliary import AuxiliaryLoss

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {"distillation.features": 15}),
        ({"objective.auxiliary": []}, {}),
        ({"objective.auxiliary": ["distillation=0.5", "cyclic=1"]}, {"distillation.features": 15}),
        ({"objective.options": {"distillation.temperature": 3}}, {"distillation.temperature": 3}),
        ({"objective.name": "info_nce"}, {"distillation.features": 15}),
    ],
)
def test_a_templates_options_go_with_the_objectives_that_they_are_for(asked, options):
    spec = RunSpec.from_flat({"domain": "industrial", **asked})
    assert spec.objective.options == options
    make(spec.objective, ["crack", "cell"])  # every one of them can be trained with


@pytest.mark.parametrize("spaced", ["distillation = 0.5", " distillation=0.5", "distillation =0.5 > 0.1", "distillation"])
def test_spaces_mean_nothing_to_an_auxiliary_loss(spaced):
    objective = RunSpec.from_flat({"domain": "industrial", "objective.auxiliary": [spaced]}).objective
    assert objective.auxiliary == [spaced.replace(" ", "")]
    (loss,) = objective.auxiliary_losses
    assert (loss.name, loss.options) == ("distillation", {"features": 15})  # the domain's option stays with it


def test_an_auxiliary_loss_has_its_weight_and_options_from_the_spec():
    spec = RunSpec.from_flat(
        {
            "domain": "general",
            "objective.auxiliary": ["cyclic=0>2", "my.losses:Mine"],
            "objective.options": {"text_weight": 0.4, "cyclic.within": 0.1, "my.losses:Mine.weight": "1>0.5"},
        }
    )
    assert spec.objective.main_options == {"text_weight": 0.4}
    assert spec.objective.auxiliary_losses == (
        AuxiliaryLoss("cyclic", 0.0, 2.0, {"within": 0.1}),
        AuxiliaryLoss("my.losses:Mine", 1.0, 0.5),
    )
    cyclic, _ = spec.objective.auxiliary_losses
    assert [cyclic.weight_at(x) for x in (0.0, 0.5, 1.0)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("auxiliary", "options", "why"),
    [
        (["cyclic=heavy"], {}, "`heavy` is no weight; write name"),
        (["cyclic="], {}, "is no weight"),
        (["cyclic=1>"], {}, "is no weight"),
        (["cyclic=nan"], {}, "is no weight"),
        (["=1"], {}, "names no objective"),
        ([""], {}, "names no objective"),
        (["0>1"], {}, "names no objective"),
        (["cyclic", "cyclic = 2"], {}, "`cyclic` stands there twice"),
        ([], {"cyclic.within": 1}, "`cyclic` is not in objective.auxiliary"),
        (["cyclic"], {"cyclic.weight": "much"}, "`much` is no weight"),
    ],
)
def test_what_is_no_auxiliary_loss_is_refused_before_anything_runs(auxiliary, options, why):
    with refuses("spec.invalid", "objective", why):
        RunSpec.from_flat({"domain": "general", "objective.auxiliary": auxiliary, "objective.options": options})


def test_every_objective_and_similarity_of_the_catalog_is_offered_and_explained():
    shown = form(["objective"])
    assert shown["objective.name"]["examples"] == [*objective_catalog.MAIN]
    assert shown["objective.similarity"]["examples"] == [*objective_catalog.SIMILARITIES]
    offered = " ".join(shown[f"objective.{name}"]["description"] for name in ("name", "auxiliary", "similarity"))
    page = (PROJECT / "docs" / "objectives.md").read_text()
    assert all(f"`{name}`" in offered for name in (*objective_catalog.OBJECTIVES, *objective_catalog.SIMILARITIES))
    assert all(table in page for table in objective_catalog.tables()), "see `clipft objective list --markdown`"


@given(
    st.text("abc_.:-XYZ019", min_size=1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_an_auxiliary_loss_is_what_was_written(name, weight, weight_end):
    loss = AuxiliaryLoss(name, weight, weight_end)
    assert AuxiliaryLoss.parse(str(loss)) == loss
    assert AuxiliaryLoss.parse(" ".join(str(loss))) == loss  # spaces anywhere
    assert AuxiliaryLoss.parse(name) == AuxiliaryLoss(name, 1.0, 1.0)


@given(st.text() | st.text("ab=>0.5- ", max_size=12))
def test_any_text_is_an_auxiliary_loss_or_a_refusal(text):
    try:
        spec = RunSpec.from_flat({"domain": "general", "objective.auxiliary": [text]})
        (loss,) = spec.objective.auxiliary_losses
        assert spec.objective.auxiliary == ["".join(text.split())] and AuxiliaryLoss.parse(str(loss)) == loss
    except ClipftError as refused:
        assert "objective.auxiliary" in str(refused)

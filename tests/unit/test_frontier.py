"""The comparison of ways to fine-tune: each way is a run that can be asked for, and the page names them all."""

import json
import math
from pathlib import Path

import pytest
import torch

from bench.frontier import carot
from bench.frontier.__main__ import BEST, DEFAULT, dominating, finite
from bench.frontier.carot import Orthogonal
from bench.frontier.methods import METHODS, PLAIN
from bench.quality import DATA
from clipft_tasks import objectives
from clipft_tasks.spec import RunSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "frontier.md"
OURS = [name for name, method in METHODS.items() if method.trainer == "clipft"]


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", OURS)
def test_each_way_is_a_run_that_can_be_asked_for(name, data):
    spec = RunSpec.from_flat({**DATA[data], **METHODS[name].fields})
    plain = RunSpec.from_flat(DATA[data])
    holds_nothing = plain.train.layer_decay == 1 and not plain.objective.auxiliary  # such a domain's recipe is `full`
    assert (spec == plain) == (name == DEFAULT or (holds_nothing and METHODS[name].fields == PLAIN))
    assert objectives.make(spec.objective)
    if name != DEFAULT:
        assert spec.train.layer_decay == 1 and (not spec.objective.auxiliary or name == "CaRot's terms")


def test_the_page_names_every_way():
    text = PAGE.read_text()
    assert all(f"`{name}`" in text or name.startswith("open_clip_train") for name in METHODS) and "`open_clip_train, …`" in text


def test_the_default_is_on_the_front_unless_a_way_scores_more_and_forgets_less():
    def columns(score: float, forgetting: float) -> dict[str, dict[str, float]]:
        return {"score": {"value": score}, "forgetting": {"value": forgetting}}

    table = {DEFAULT: columns(0.8, 0.02), "full": columns(0.9, 0.2), "LoRA": columns(0.7, 0.01)}
    assert dominating(table) == []
    assert dominating({**table, BEST: columns(0.81, 0.01)}) == [BEST]
    assert json.loads(json.dumps(finite({"a": {"b": math.nan, "c": 1.0}}), allow_nan=False)) == {"a": {"b": None, "c": 1.0}}


def test_the_orthogonal_term_is_zero_for_a_rotation_and_pulls_towards_one(monkeypatch):
    rotation = torch.linalg.qr(torch.randn(12, 12))[0][:5]
    weight = torch.nn.Parameter(3 * rotation)
    monkeypatch.setattr(carot, "projection", [weight])
    assert Orthogonal().forward(None)["orthogonal_loss"].item() == pytest.approx(0, abs=1e-9)
    weight.data += 0.5 * torch.randn_like(weight)
    before = Orthogonal().forward(None)["orthogonal_loss"]
    before.backward()
    weight.data -= 0.01 * weight.grad
    assert Orthogonal().forward(None)["orthogonal_loss"] < before

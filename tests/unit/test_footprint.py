"""What a run takes whatever the size of a pass: counted for what trains, and for the copies that its recipe asks for."""

import pytest
import torch
from fixtures.plans import CPU, lab, start  # noqa: F401

from clipft_tasks.spec import RunSpec
from clipft_tasks.train.footprint import as_it_trains, footprint
from clipft_tasks.train.plan import longest


def taken(model, **fields: object):
    return footprint(RunSpec.from_flat({"domain": "general"} | fields), model)


def test_full_training_takes_weights_gradients_and_two_moments(start):
    weights = 4 * sum(p.numel() for p in start.model.parameters())
    full = taken(start.model)
    assert (full.weights, full.training, full.total) == (weights, 3 * weights, 4 * weights)
    assert "gradients and optimizer" in str(full) and "start model" not in str(full)


def test_copies_that_a_recipe_asks_for_count(start):
    full = taken(start.model)
    assert taken(start.model, **{"train.ema": 0.9}).total - full.total == full.weights
    assert taken(start.model, **{"objective.auxiliary": ["distillation=0.5"]}).total - full.total == full.weights
    assert taken(start.model, **{"train.l2_start": 1.0}).total - full.total == full.weights


@pytest.mark.parametrize("fields", [{"train.lora_rank": 4}, {"train.rules": ["visual.*=freeze"]}], ids=["lora", "frozen"])
def test_what_does_not_train_has_no_gradient_and_no_moments_and_the_model_stays_as_it_is(start, fields):
    before = {name: (p.requires_grad, p.clone()) for name, p in start.model.named_parameters()}
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    assert taken(start.model, **fields).training < taken(start.model).training
    assert torch.equal(torch.rand(2), expected)
    after = dict(start.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name].requires_grad == asks and torch.equal(after[name], value) for name, (asks, value) in before.items())


def test_a_measurement_is_made_of_what_trains_and_leaves_nothing_behind(start):
    frozen = RunSpec.from_flat({"domain": "general", "train.rules": ["visual.*=freeze"]}).train
    with as_it_trains(start.model, frozen):
        assert not start.model.encode_image(torch.zeros(1, 3, 32, 32)).requires_grad
        assert start.model.token_embedding.weight.requires_grad
    lora = RunSpec.from_flat({"domain": "general", "train.lora_rank": 4}).train
    attention = start.model.visual.transformer.resblocks[0].attn
    with as_it_trains(start.model, lora):
        assert attention.adapter.up.requires_grad and not attention.in_proj_weight.requires_grad
        assert not start.model.token_embedding.weight.requires_grad
    assert all(p.requires_grad for p in start.model.parameters()) and not hasattr(attention, "adapter")


def test_long_captions_make_smaller_passes(lab):
    fields = {"memory__memory_gb": 64, "memory__checkpointing": "none"}
    short, long = (lab.plan(CPU, texts=longest([text, "a"]), **fields) for text in ("a word", "very many words " * 40))
    assert long.micro_batch.measured["pair_mib"] > short.micro_batch.measured["pair_mib"]

"""What a run takes whatever the size of a pass: counted for what trains, and for the copies that its recipe asks for."""

import pytest
import torch
from fixtures.plans import CPU, lab, start  # noqa: F401

from clipft_tasks.devices import backend
from clipft_tasks.spec import RunSpec
from clipft_tasks.train.footprint import as_it_trains, footprint
from clipft_tasks.train.plan import attention_policy, longest


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


def test_what_a_run_keeps_on_the_host_counts_where_the_device_shares_its_memory(start):
    spec = RunSpec.from_flat({"domain": "general", "train.ema": 0.9})
    apart, shared = footprint(spec, start.model), footprint(spec, start.model, on_host=True)
    assert (apart.best, apart.copy) == (0, 0)
    # The kept epoch's weights are there for good; weights, both moments and the average are copied while they are written.
    assert shared.total - apart.total == shared.best == shared.weights and shared.copy == 4 * shared.weights
    last = footprint(RunSpec.from_flat({"domain": "general", "train.keep": "last"}), start.model, on_host=True)
    assert last.best == 0 and last.copy == 3 * last.weights


def test_passes_leave_room_for_the_copy_of_a_checkpoint_where_a_batch_goes_in_parts_anyway(lab, start):
    fields = {"memory__checkpointing": "none", "memory__compile": "off", "train__keep": "last"}
    copy = footprint(RunSpec.from_flat({"domain": "general", "train.keep": "last"}), start.model, on_host=True).copy
    free = lab.plan(CPU, rows=4096, **fields, memory__memory_gb=64).micro_batch.measured
    each = free["pair_mib"] * 2**20

    def pairs(fit: float, batch: int) -> int:
        limit = free["fixed_gib"] + (fit * each + 2**20) / 2**30
        made = lab.plan(CPU, rows=4096, **fields, memory__memory_gb=limit, train__batch=batch)
        return made.micro_batch.value[32]

    beside = copy / each  # pairs that would fit into the copy's room
    assert pairs(70 + beside, 4096) == 64  # the most of which the copy is beside
    assert pairs(70 + beside, int(66 + beside / 2)) == int(66 + beside / 2)  # rather than in two passes
    assert pairs(70, 4096) == 64 or beside < 40  # too little for both: passes come first


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


def test_blocks_of_attention_take_what_the_limit_leaves_not_what_the_device_has(monkeypatch):
    device = backend("cpu")
    monkeypatch.setattr(type(device), "memory_free", lambda device: 64 * 2**30)
    monkeypatch.setattr(type(device), "memory_used", lambda device: 3 * 2**30)
    unlimited, within, over = (attention_policy("chunked", device, limit) for limit in (None, 4 * 2**30, 2**30))
    assert within.scores == 2**30 // 24 < unlimited.scores
    assert over.scores == 2**22  # what a block always may hold

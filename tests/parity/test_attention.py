"""Attention in slices and chunks equals torch's own, in value and gradient, in every tower."""

import copy
from contextlib import nullcontext

import open_clip
import pytest
import timm
import torch
from conftest import TINY
from fixtures.parity import DEVICE
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipft_tasks.model import attention
from clipft_tasks.model.attention import Policy

SLICED, CHUNKED = Policy("sliced", 2000), Policy("chunked", 2000)
POLICIES = pytest.mark.parametrize("policy", [SLICED, CHUNKED], ids=lambda p: p.name)


def parts(shape=(2, 3, 37, 16), keys=41, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lead, n, d = shape[:-2], shape[-2], shape[-1]
    sizes = [(*lead, n, d), (*lead, keys, d), (*lead, keys, d)]
    return [torch.randn(s, generator=generator, dtype=dtype).to(DEVICE).requires_grad_() for s in sizes]


def masks(n=37, m=41):
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(2, 1, n, m, generator=generator) > 0.3
    some[..., 0] = True
    made = {
        "none": None,
        "bool by batch": some,
        "float by head": torch.randn(1, 3, n, m, generator=generator),
        "one for all": torch.randn(n, m, generator=generator),
        "keys only": some[:, :, :1],
        "minus infinity": torch.zeros(n, m).masked_fill(~some[0, 0], -torch.inf),
    }
    return {name: None if mask is None else mask.to(DEVICE) for name, mask in made.items()}


def both(function, inputs):
    out = function(*inputs)
    weight = torch.arange(out.numel(), device=out.device).view(out.shape).sin()
    return out, torch.autograd.grad((out * weight).sum(), inputs)


@POLICIES
@pytest.mark.parametrize("kind", masks())
def test_masks_of_every_shape(policy, kind):
    mask = masks()[kind]
    inputs = parts()
    ours, theirs = (
        both(lambda q, k, v: attention.attend(q, k, v, mask, policy=policy), inputs),
        both(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, mask), inputs),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@POLICIES
@pytest.mark.parametrize("head", [1, 5, 64, 72])
def test_causal_with_heads_of_any_size(policy, head):
    inputs = parts((2, 3, 37, head), 37)
    ours, theirs = (
        both(lambda q, k, v: attention.attend(q, k, v, is_causal=True, scale=0.3, policy=policy), inputs),
        both(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3), inputs),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@POLICIES
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 2, 3)])
def test_any_number_of_leading_dimensions(policy, lead):
    inputs = parts((*lead, 9, 8), 11)
    ours, theirs = (
        both(lambda q, k, v: attention.attend(q, k, v, policy=policy), inputs),
        both(functional.scaled_dot_product_attention, inputs),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@POLICIES
def test_heads_that_share_keys(policy):
    q, k, v = parts((2, 6, 20, 8), 20)
    k, v = (x[:, :2].detach().requires_grad_() for x in (k, v))
    ours, theirs = (
        both(lambda q, k, v: attention.attend(q, k, v, enable_gqa=True, policy=policy), (q, k, v)),
        both(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True), (q, k, v)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@POLICIES
def test_a_row_that_may_attend_to_nothing_gives_zeros(policy):
    inputs = parts()
    mask = torch.ones(37, 41, dtype=torch.bool, device=DEVICE)
    mask[5] = False
    out, gradients = both(lambda q, k, v: attention.attend(q, k, v, mask, policy=policy), inputs)
    assert (out[:, :, 5] == 0).all() and all(g.isfinite().all() for g in gradients)


@POLICIES
def test_a_learned_mask_has_its_gradient(policy):
    inputs = parts()
    for shape in ((1, 3, 37, 41), (37, 41), (1, 1, 1, 41)):
        mask = torch.randn(shape, device=DEVICE).requires_grad_()
        ours, theirs = (
            both(lambda q, k, v, m: attention.attend(q, k, v, m, policy=policy), [*inputs, mask]),
            both(lambda q, k, v, m: functional.scaled_dot_product_attention(q, k, v, m), [*inputs, mask]),
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE.type == "mps", reason="MPS has no float64")
@POLICIES
def test_dropout_draws_the_same_numbers_in_both_passes(policy):
    """The weights that were kept are read off with an identity for values; the gradient is then that of plain arithmetic."""
    q, k, _ = parts(dtype=torch.float64)
    v = torch.eye(41, dtype=torch.float64, device=DEVICE).expand(2, 3, 41, 41).clone().requires_grad_()

    def ours(q, k, v):
        torch.manual_seed(7)
        return attention.attend(q, k, v, dropout_p=0.4, policy=policy)

    weights = (q @ k.transpose(-1, -2) / 4).softmax(-1)
    factor = (ours(q, k, v).detach() / weights.detach()).round(decimals=3)  # 0, or 1 / 0.6
    assert sorted(factor.unique().tolist()) == [0.0, 1.667]
    assert abs((factor == 0).double().mean() - 0.4) < 0.03
    kept = (factor > 0).double() / 0.6

    def plain(q, k, v):
        return ((q @ k.transpose(-1, -2) / 4).softmax(-1) * kept) @ v

    torch.testing.assert_close(both(ours, (q, k, v)), both(plain, (q, k, v)), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE.type == "mps", reason="MPS has no float64")
@POLICIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_near_to_the_truth(policy, dtype):
    exact = both(functional.scaled_dot_product_attention, parts(dtype=torch.float64))
    low = [x.detach().to(dtype).requires_grad_() for x in parts(dtype=torch.float64)]
    ours = both(lambda q, k, v: attention.attend(q, k, v, policy=policy), low)
    with sdpa_kernel(SDPBackend.MATH):
        theirs = both(functional.scaled_dot_product_attention, low)

    def worst(given):
        return max(
            (a.double() - b).abs().max().item() for a, b in zip([given[0], *given[1]], [exact[0], *exact[1]], strict=True)
        )

    assert ours[0].dtype == dtype
    # Scores leave the matrix product rounded once more than in a fused kernel: a few units of the format's last place.
    assert worst(ours) < 3 * worst(theirs)


def test_blocks_cover_every_score_once_and_stay_inside_the_limit():
    for policy in (Policy("sliced", 5000), Policy("chunked", 5000)):
        for shape in ((2, 3, 37, 41), (1, 1, 1000, 17), (7, 16, 5, 5), (1, 12, 8, 9000)):
            seen = torch.zeros(shape[:3], dtype=torch.int)
            found = attention.blocks(shape, policy)
            for block in found:
                seen[block] += 1
            assert (seen == 1).all()
            largest = max(seen[b].numel() * shape[3] for b in found)
            smallest = shape[2] * shape[3] if policy.name == "sliced" else min(8, shape[2]) * shape[3]
            assert largest <= max(5000, smallest)
            assert len({tuple(s.stop - s.start for s in b) for b in found}) <= 8  # few shapes


def test_no_block_is_larger_than_a_tensor_may_be_on_mps():
    for policy in (Policy("sliced", 2**40), Policy("chunked", 2**40)):
        b, h, r = attention.blocks((8, 16, 9000, 9000), policy)[0]
        assert (b.stop - b.start) * (h.stop - h.start) * (r.stop - r.start) * 9000 < 2**31


def bert():
    import transformers

    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=99,
        _attn_implementation="sdpa",
    )
    return transformers.BertModel(config), {
        "input_ids": torch.randint(1, 99, (3, 21)),
        "attention_mask": (torch.arange(21) < torch.tensor([[21], [9], [4]])).long(),
    }


def towers():
    torch.manual_seed(0)
    clip = open_clip.CLIP(**copy.deepcopy(TINY["model_cfg"]))
    yield "open_clip", clip, {"image": torch.randn(3, 3, 32, 32), "text": torch.randint(1, 400, (3, 32))}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=2)
    yield "timm", vit, {"x": torch.randn(2, 3, 64, 64)}
    model, inputs = bert()
    yield "transformers", model, inputs


def flat(out):
    if isinstance(out, torch.Tensor):
        return out
    values = out.values() if isinstance(out, dict) else out
    return torch.cat([v.flatten() for v in values if isinstance(v, torch.Tensor) and v.numel() > 1])


@POLICIES
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_every_tower_goes_through_the_policy(policy, which, training, monkeypatch):
    name, model, inputs = list(towers())[which]
    model.train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if name == "transformers":
        model.config.attention_probs_dropout_prob = 0.0
        for layer in model.encoder.layer:
            layer.attention.self.dropout_prob = 0.0
    calls = []
    inner = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a, **k: calls.append(1) or inner(*a, **k))

    def gradients(used):
        model.zero_grad()
        with attention.use(used), nullcontext() if training else torch.no_grad():
            out = flat(model(**inputs))
            if training:
                (out * torch.arange(len(out.flatten())).view(out.shape).sin()).sum().backward()
        return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    plain = gradients(None)
    assert not calls
    ours = gradients(policy)
    assert calls, name
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=2e-5)


def test_the_policy_ends_with_its_block_and_short_sequences_stay_fused(monkeypatch):
    q, k, v = parts()
    before = functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), attention.use(CHUNKED):
        assert functional.scaled_dot_product_attention is not before[0]
        raise ZeroDivisionError
    assert (functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()) == before
    monkeypatch.setattr(attention, "attend", None)
    with attention.use(Policy("chunked", longer_than=41)):
        functional.scaled_dot_product_attention(q, k, v)  # would fail if it were chunked
    with attention.use(Policy("fused")):
        assert functional.scaled_dot_product_attention is before[0]


@POLICIES
def test_nothing_of_the_size_of_the_scores_is_kept_for_the_backward(policy):
    q, k, v = parts((2, 4, 300, 16), 300)
    kept = []

    def count(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        out = attention.attend(q, k, v, policy=policy)
    assert max(kept) < 2 * 4 * 300 * 300 / 10
    out.sum().backward()


@POLICIES
def test_a_backward_pass_inside_autocast_is_the_one_outside(policy):
    inputs = parts()
    gradients = []
    for inside in (True, False):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = attention.attend(*inputs, policy=policy)
            if inside:
                gradients.append(torch.autograd.grad(out.float().sum(), inputs))
        if not inside:
            gradients.append(torch.autograd.grad(out.float().sum(), inputs))
    torch.testing.assert_close(gradients[0], gradients[1])

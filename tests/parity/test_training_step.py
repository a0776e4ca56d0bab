"""Exact means exact: parts, cuts and repeats change the cost of a step, not its result."""

import math
from dataclasses import replace

import open_clip
import pytest
import torch
from fixtures.errors import refuses
from fixtures.parity import a_batch, a_clip, towers

from clipft_tasks.data.loader import Batch
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.similarity import Cosine
from clipft_tasks.objectives import InfoNCE, MultiPositive, Pairs
from clipft_tasks.train import step


@pytest.fixture(params=[open_clip.CLIP, open_clip.CustomTextCLIP], ids=["clip", "custom_text"])
def clip(request) -> Clip:
    return a_clip(request.param)


def gradients(clip: Clip, objective, micro: int, data: Batch, precision: str = "fp32") -> dict[str, torch.Tensor]:
    clip.model.zero_grad()
    step.backward(towers(clip, precision), objective, data, micro_batch=micro, seed=5)
    return {name: p.grad.clone() for name, p in clip.model.named_parameters() if p.grad is not None}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Relative distance of two whole gradients; each parameter's own is held to a looser bound, since some nearly cancel."""
    for name in one:
        assert (one[name] - other[name]).norm() <= 1e-4 * one[name].norm() + 1e-8, name
    first, second = (torch.cat([g.flatten() for g in gradient.values()]) for gradient in (one, other))
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize("objective", [InfoNCE(), InfoNCE(smoothing=0.1), MultiPositive("caption"), MultiPositive("label")])
@pytest.mark.parametrize("micro", [1, 5, 11])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(clip, objective, micro):
    whole, parts = gradients(clip, objective, 99, a_batch(clip)), gradients(clip, objective, micro, a_batch(clip))
    assert whole.keys() == parts.keys()
    assert apart(whole, parts) < 1e-5


def test_a_batch_in_parts_is_exact_with_dropout(clip):
    class Noisy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.nn.functional.dropout(self.inner(x), 0.5, self.training)

    clip.model.visual.ln_post = Noisy(clip.model.visual.ln_post)
    first, second = gradients(clip, InfoNCE(), 4, a_batch(clip)), gradients(clip, InfoNCE(), 4, a_batch(clip))
    assert all(torch.equal(first[n], second[n]) for n in first)  # both passes of each part drew the same numbers


def test_repeated_captions_encoded_once_equal_all_encoded(clip):
    data = a_batch(clip)
    spelled_out = replace(data, tokens=data.tokens[data.caption], caption=torch.arange(12))
    objective = InfoNCE()  # sees captions as ids only where it asks for them
    once, every = gradients(clip, objective, 99, data), gradients(clip, objective, 99, spelled_out)
    for name in once:
        torch.testing.assert_close(once[name], every[name], rtol=1e-4, atol=1e-6)


def test_cut_texts_equal_full_length_texts(clip):
    clip.model.eval()
    cut = clip.tokenize(["red"] * 2)
    full = clip.tokenizer(["red"] * 2)
    assert cut.shape[1] < full.shape[1]
    a, b = clip.text_features(cut), clip.model.encode_text(full)
    torch.testing.assert_close(
        torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1), rtol=1e-5, atol=1e-6
    )


def test_out_of_memory_in_evaluation_halves_what_is_encoded_at_once(clip, monkeypatch, capsys):
    images, texts = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8), ["a", "red square", "b c", "d e f"]
    clip.model.eval()
    limit = 100

    def short(encode):
        def encoding(inputs):
            if len(inputs) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return encode(inputs)

        return encoding

    for name in ("image_features", "text_features"):
        monkeypatch.setattr(clip, name, short(getattr(clip, name)), raising=False)
    with torch.no_grad():
        whole = clip.encode_images(images), clip.encode_texts(texts)
        limit = 2
        torch.testing.assert_close((clip.encode_images(images), clip.encode_texts(texts)), whole, rtol=1e-5, atol=1e-6)
        said = capsys.readouterr().out
        assert "Out of memory with 7 images of 32 px: in halves." in said and "with 4 texts" in said
        limit = 0
        with refuses("memory.single_too_large", "images of 32 px", "CUDA out of"):
            clip.encode_images(images)


def test_a_learned_bias_is_reported(clip):
    clip.model.logit_bias = torch.nn.Parameter(torch.tensor(-10.0, device=clip.device))
    report = step.backward(towers(clip), InfoNCE(), a_batch(clip), micro_batch=99, seed=1)
    assert report["bias"] == -10 and report["temperature"] == pytest.approx(0.07, rel=1e-4)


def some_pairs(image: torch.Tensor, text: torch.Tensor, captions: torch.Tensor) -> Pairs:
    labels = torch.full((len(captions),), -1)
    return Pairs(image, text, Cosine(image.shape[1]), torch.tensor(14.0), captions, labels, labels >= 0)


def test_multi_positive_is_info_nce_when_all_captions_differ():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    pairs = some_pairs(image, text, torch.arange(6))
    for kind in ("pair", "caption", "label"):
        torch.testing.assert_close(MultiPositive(kind)(pairs)["contrastive_loss"], InfoNCE()(pairs)["contrastive_loss"])


def test_info_nce_is_open_clips_loss():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    theirs = open_clip.ClipLoss()(image, text, torch.tensor(14.0))
    ours = InfoNCE()(some_pairs(image, text, torch.arange(6)))["contrastive_loss"]
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_equal_captions_pulls_them_together():
    """With InfoNCE, an image is pushed away from its own caption's twin; with multi-positive it is not."""
    image = torch.eye(2, 4).requires_grad_()
    text = torch.nn.functional.normalize(torch.ones(2, 4), dim=-1)
    loss = MultiPositive()(some_pairs(image, text, torch.zeros(2, dtype=torch.long)))["contrastive_loss"]
    assert torch.autograd.grad(loss, image)[0].abs().max() < 1e-6


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e9, math.inf])
def test_a_fused_optimizer_clips_as_torch_does_beforehand(limit):
    momenta = []  # what AdamW saw of the gradients; its step alone would not show their scale
    for late in (False, True):
        clip = a_clip()
        optimizer, parameters = torch.optim.AdamW(clip.model.parameters(), fused=True), list(clip.model.parameters())
        step.backward(towers(clip), InfoNCE(), a_batch(clip), micro_batch=99, seed=1)
        norm = step.total_norm(parameters)
        if late:
            step.clip_and_skip(optimizer, norm[None], norm, limit)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        optimizer.step()
        momenta.append([state["exp_avg"] for state in optimizer.state.values()])
    for one, other in zip(*momenta, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-10)


def test_a_fused_optimizer_skips_a_step_whose_metrics_are_no_numbers():
    clip = a_clip()
    optimizer = torch.optim.AdamW(clip.model.parameters(), lr=1e-3, fused=True)
    before = {name: p.clone() for name, p in clip.model.named_parameters()}
    step.backward(towers(clip), InfoNCE(), a_batch(clip), micro_batch=99, seed=1)
    norm = step.total_norm(list(clip.model.parameters()))
    step.clip_and_skip(optimizer, torch.tensor([1.0, math.nan], device=norm.device), norm, 1.0)
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in clip.model.named_parameters())

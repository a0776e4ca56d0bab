"""Exact means exact: parts, cuts and repeats change the cost of a step, not its result."""

import copy
from contextlib import nullcontext

import open_clip
import pytest
import torch
from conftest import TINY

from clipft_tasks.model.clip import Clip
from clipft_tasks.objectives import InfoNCE, MultiPositive
from clipft_tasks.train import step

CAPTIONS = [
    "a red square",
    "a blue square with a rather long description of everything in it",
    "green",
    "a red square in a box",
]


@pytest.fixture(params=["clip", "custom_text"])
def clip(request) -> Clip:
    torch.manual_seed(0)
    kind = open_clip.CLIP if request.param == "clip" else open_clip.CustomTextCLIP
    model = kind(**copy.deepcopy(TINY["model_cfg"])).train()
    return Clip(model, open_clip.SimpleTokenizer(context_length=32), copy.deepcopy(TINY), "tiny", "")


def batch(n: int = 12) -> dict:
    generator = torch.Generator().manual_seed(1)
    caption = torch.randint(0, len(CAPTIONS), (n,), generator=generator)
    return {
        "image": torch.randint(0, 256, (n, 3, 32, 32), generator=generator).float(),
        "texts": CAPTIONS,
        "caption": caption,
        "label": caption % 2,
    }


def gradients(clip: Clip, objective, micro: int, data: dict) -> dict[str, torch.Tensor]:
    clip.model.zero_grad()
    step.backward(clip, objective, data, micro_batch=micro, seed=5, autocast=nullcontext)
    return {name: p.grad.clone() for name, p in clip.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", [InfoNCE(), InfoNCE(smoothing=0.1), MultiPositive("caption"), MultiPositive("label")])
@pytest.mark.parametrize("micro", [1, 5, 11])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(clip, objective, micro):
    whole, parts = gradients(clip, objective, 99, batch()), gradients(clip, objective, micro, batch())
    assert whole.keys() == parts.keys()
    for name in whole:
        scale = whole[name].abs().max().clamp_min(1e-8)
        assert (whole[name] - parts[name]).abs().max() / scale < 1e-4, name


def test_a_batch_in_parts_is_exact_with_dropout(clip):
    class Noisy(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return torch.nn.functional.dropout(self.inner(x), 0.5, self.training)

    clip.model.visual.ln_post = Noisy(clip.model.visual.ln_post)
    first, second = gradients(clip, InfoNCE(), 4, batch()), gradients(clip, InfoNCE(), 4, batch())
    assert all(torch.equal(first[n], second[n]) for n in first)  # both passes of each part drew the same numbers


def test_repeated_captions_encoded_once_equal_all_encoded(clip):
    data = batch()
    spelled_out = data | {"texts": [CAPTIONS[i] for i in data["caption"]], "caption": torch.arange(12)}
    ids = {"captions": data["caption"], "labels": data["label"]}

    def loss(d):
        text = clip.text_features(clip.tokenise(d["texts"]))[d["caption"]]
        image = clip.model.encode_image(clip.normalise(d["image"]))
        image, text = (torch.nn.functional.normalize(x, dim=-1) for x in (image, text))
        return MultiPositive()(image=image, text=text, scale=torch.tensor(10.0), **ids)["contrastive_loss"]

    once = torch.autograd.grad(loss(data), list(clip.model.parameters()), allow_unused=True)
    every = torch.autograd.grad(loss(spelled_out), list(clip.model.parameters()), allow_unused=True)
    for a, b in zip(once, every, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_cut_texts_equal_full_length_texts(clip):
    clip.model.eval()
    cut = clip.tokenise(["red"] * 2)
    full = clip.tokenizer(["red"] * 2)
    assert cut.shape[1] < full.shape[1]
    a, b = clip.text_features(cut), clip.model.encode_text(full)
    torch.testing.assert_close(
        torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1), rtol=1e-5, atol=1e-6
    )


def test_multi_positive_is_info_nce_when_all_captions_differ():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    ids = {"captions": torch.arange(6), "labels": torch.full((6,), -1), "scale": torch.tensor(14.0)}
    for kind in ("pair", "caption", "label"):
        ours = MultiPositive(kind)(image=image, text=text, **ids)["contrastive_loss"]
        torch.testing.assert_close(ours, InfoNCE()(image=image, text=text, **ids)["contrastive_loss"])


def test_info_nce_is_open_clips_loss():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    theirs = open_clip.ClipLoss()(image, text, torch.tensor(14.0))
    ids = {"captions": torch.arange(6), "labels": torch.full((6,), -1)}
    ours = InfoNCE()(image=image, text=text, scale=torch.tensor(14.0), **ids)["contrastive_loss"]
    torch.testing.assert_close(ours, theirs)


def test_the_gradient_of_equal_captions_pulls_them_together():
    """With InfoNCE, a picture is pushed away from its own caption's twin; with multi-positive it is not."""
    image = torch.eye(2, 4).requires_grad_()
    text = torch.nn.functional.normalize(torch.ones(2, 4), dim=-1)
    ids = {"captions": torch.zeros(2, dtype=torch.long), "labels": torch.full((2,), -1), "scale": torch.tensor(10.0)}
    loss = MultiPositive()(image=image, text=text, **ids)["contrastive_loss"]
    assert torch.autograd.grad(loss, image)[0].abs().max() < 1e-6

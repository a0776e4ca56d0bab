"""The quicker modules, other image sizes, blocks run again and compiled towers: all give what the plain model gives."""

import copy

import open_clip
import pytest
import timm
import torch
from conftest import TINY
from fixtures.errors import refuses
from open_clip.model import resize_pos_embed
from torch import nn
from torch.nn.functional import normalize

from clipft_tasks.model import positions
from clipft_tasks.model.activation_checkpointing import checkpoint_blocks, plain_blocks
from clipft_tasks.model.clip import Clip, by_length
from clipft_tasks.model.fastpath import PackedAttention, PatchConv2d, quicken
from clipft_tasks.model.resolution import set_context, set_patch, set_side


def clip_of(kind=open_clip.CLIP, **vision) -> Clip:
    torch.manual_seed(0)
    config = copy.deepcopy(TINY)
    config["model_cfg"]["vision_cfg"] |= vision
    return Clip(kind(**config["model_cfg"]), open_clip.SimpleTokenizer(context_length=32), config, "tiny", "")


def timm_clip(side: int = 224) -> Clip:
    torch.manual_seed(0)
    config = copy.deepcopy(TINY)
    config["model_cfg"]["vision_cfg"] = {
        "timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear",
        "image_size": side,
    }  # fmt: skip
    return Clip(
        open_clip.CustomTextCLIP(**config["model_cfg"]), open_clip.SimpleTokenizer(context_length=32), config, "timm", ""
    )


def gradients(model: nn.Module, out: torch.Tensor) -> list[torch.Tensor]:
    found = torch.autograd.grad(
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum(), list(model.parameters()), allow_unused=True
    )
    return [g for g in found if g is not None]


@pytest.mark.parametrize("training", [True, False])
def test_quick_towers_give_what_the_plain_ones_give(training):
    plain, quick = clip_of().model.train(training), quicken(clip_of().model).train(training)
    assert type(quick.visual.conv1) is PatchConv2d and type(quick.visual.transformer.resblocks[0].attn) is PackedAttention
    assert plain.state_dict().keys() == quick.state_dict().keys()
    images, texts = torch.randn(3, 3, 32, 32), torch.randint(1, 400, (3, 32))
    for one, other in ((plain(images, texts), quick(images, texts)),):
        for a, b in zip(one[:2], other[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    a, b = (gradients(m, m.encode_image(images)) for m in (plain, quick))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_packed_attention_takes_what_torchs_own_takes(batch_first):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    quick = quicken(copy.deepcopy(plain))
    x = torch.randn(5, 7, 16)
    length = 7 if batch_first else 5
    count = 5 if batch_first else 7
    causal = torch.triu(torch.full((length, length), -torch.inf), 1)
    for mask, hint in (
        (None, False), (causal, False), (causal, True), (causal == -torch.inf, False),
        (causal.expand(count * 4, length, length), False),
    ):  # fmt: skip
        ours, none = quick(x, x, x, need_weights=False, attn_mask=mask, is_causal=hint)
        theirs, _ = plain(x, x, x, need_weights=False, attn_mask=mask, is_causal=hint)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert none is None
    y = torch.randn(5, 7, 16)
    torch.testing.assert_close(quick(x, y, y), plain(x, y, y))  # weights and other keys: torch's own


def test_patches_that_do_not_fill_the_image_are_cut_as_a_convolution_cuts_them():
    plain = nn.Conv2d(3, 8, 4, stride=4)
    quick = copy.deepcopy(plain)
    quick.__class__ = PatchConv2d
    x = torch.randn(2, 3, 19, 22)
    torch.testing.assert_close(plain(x), quick(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [clip_of, lambda: clip_of(open_clip.CustomTextCLIP)], ids=["clip", "custom_text"])
@pytest.mark.parametrize("side", [16, 48, 64])
def test_other_sides_equal_open_clips_resampled_weights(make, side):
    clip, resized = make(), make()
    visual = resized.model.visual
    visual.grid_size = (side // 8, side // 8)
    state = {"visual.positional_embedding": visual.positional_embedding.detach()}
    resize_pos_embed(state, resized.model)
    visual.positional_embedding = nn.Parameter(state["visual.positional_embedding"])
    images = torch.randn(2, 3, side, side)
    torch.testing.assert_close(clip.image_features(images), resized.model.encode_image(images), rtol=1e-4, atol=1e-5)
    assert clip.side == 32 and clip.model.visual.positional_embedding.shape[0] == 17  # what is stored did not change
    set_side(clip, side)
    torch.testing.assert_close(clip.image_features(images), resized.model.encode_image(images), rtol=1e-4, atol=1e-5)


def test_a_timm_tower_takes_other_sides_as_timm_would_resample_them():
    clip, resized = timm_clip(), timm_clip()
    images = torch.randn(2, 3, 64, 64)
    resized.model.visual.trunk.set_input_size(img_size=(64, 64))
    torch.testing.assert_close(clip.image_features(images), resized.model.encode_image(images), rtol=1e-4, atol=1e-5)
    assert clip.model.visual.trunk.pos_embed.shape[1] == 197


def test_training_at_another_side_moves_the_stored_positions():
    clip = clip_of()
    clip.image_features(torch.randn(2, 3, 64, 64)).sum().backward()
    gradient = clip.model.visual.positional_embedding.grad
    assert gradient.shape == (17, 64) and (gradient.abs().sum(dim=1) > 0).all()


def test_resampling_keeps_a_constant_and_is_the_identity_at_the_same_size():
    matrix = positions.resampling((4, 4), (6, 6), torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(36))
    torch.testing.assert_close(positions.resampling((4, 4), (4, 4), torch.device("cpu")), torch.eye(16))


def test_a_side_first_seen_in_inference_can_be_trained_at_afterwards():
    clip = clip_of()
    with torch.inference_mode():
        clip.image_features(torch.randn(1, 3, 56, 56))
    clip.image_features(torch.randn(1, 3, 56, 56)).sum().backward()
    assert clip.model.visual.positional_embedding.grad.abs().sum() > 0


def test_sides_that_cannot_be_are_refused_with_one_that_can():
    with refuses("model.impossible_side", "patch of 8", "Use 32"):
        clip_of().image_features(torch.randn(1, 3, 36, 36))


@pytest.mark.parametrize("patch", [4, 16])
def test_another_patch_size_sees_a_smooth_image_alike(patch):
    """FlexiViT's promise: on an image that is flat within patches, the resampled patch weights give the same embedding."""
    clip = clip_of()
    flat = torch.randn(2, 3, 1, 1).expand(2, 3, 32, 32)
    before = clip.model.visual.conv1(flat)[:, :, 0, 0]
    set_patch(clip, patch)
    after = clip.model.visual.conv1(flat)[:, :, 0, 0]
    assert clip.model.visual.positional_embedding.shape[0] == (32 // patch) ** 2 + 1
    if patch > 8:
        torch.testing.assert_close(after, before, rtol=0.1, atol=0.05)
    assert torch.nn.functional.cosine_similarity(after, before).min() > 0.95
    assert clip.image_features(torch.randn(1, 3, 32, 32)).shape == (1, 32)


@pytest.mark.parametrize("length", [16, 64])
def test_another_context_keeps_what_short_captions_mean(length):
    clip = clip_of()
    short = ["a red square"]
    before = clip.encode_texts(short)
    set_context(clip, length)
    torch.testing.assert_close(clip.encode_texts(short), before, rtol=1e-4, atol=1e-5)
    assert clip.context_length == length and clip.encode_texts(["word " * 60]).isfinite().all()


@pytest.mark.parametrize("every", [1, 2])
def test_blocks_that_run_again_have_the_same_gradient_and_keep_less(every):
    clip = clip_of()
    images = torch.randn(4, 3, 32, 32)

    def kept(model):
        sizes = []

        def count(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            out = model.encode_image(images)
        return sum(sizes), gradients(model, out)

    plain, before = kept(clip.model)
    assert checkpoint_blocks(clip.model, every) == (2 if every == 1 else 1)
    again, after = kept(clip.model)
    plain_blocks(clip.model)
    torch.testing.assert_close(before, after)
    assert again < plain
    assert kept(clip.model)[0] == plain


def test_every_kind_of_tower_has_blocks_to_run_again():
    import transformers

    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    assert checkpoint_blocks(transformers.BertModel(config), 1) == 2
    assert checkpoint_blocks(timm.create_model("vit_tiny_patch16_224", depth=3), 1) == 3
    assert checkpoint_blocks(timm.create_model("tf_efficientnet_lite0"), 1) > 3
    with refuses("model.no_blocks", "memory.checkpointing"):
        checkpoint_blocks(nn.Sequential(nn.Linear(2, 2)), 1)


@pytest.mark.slow
def test_compiled_towers_give_what_plain_ones_give():
    clip = clip_of()
    quicken(clip.model)
    images, tokens = torch.randn(4, 3, 32, 32), clip.tokenize(["a", "a b c", "red", "blue"])
    image, text = (torch.compile(f, dynamic=False) for f in (clip.image_features, clip.text_features))
    for side in (32, 48):
        images = torch.randn(4, 3, side, side)
        torch.testing.assert_close(image(images), clip.image_features(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normalize(text(tokens)), normalize(clip.text_features(tokens)), rtol=1e-4, atol=1e-5)
    a, b = gradients(clip.model, image(images)), gradients(clip.model, clip.image_features(images))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_texts_of_about_one_length_at_a_time_give_what_all_at_once_give():
    clip = clip_of()
    texts = ["a", "a rather long sentence about a crack in a solar cell that goes on", "b", "two of them are short", "a"]
    tokens = clip.tokenize(texts)
    calls: list[tuple[int, ...]] = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(part.shape))
        return clip.text_features(part)

    assert clip.pays_by_length(tokens)
    whole, grouped = clip.text_features(tokens), by_length(encode, tokens, clip.pad)
    assert calls == [(4, 8), (1, 16)]
    torch.testing.assert_close(grouped, whole, rtol=1e-5, atol=1e-6)
    one, other = (gradients(clip.model, out) for out in (whole, grouped))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert by_length(encode, tokens[:0], clip.pad).shape == (0, clip.embed_dim)

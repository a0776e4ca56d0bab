"""Heatmaps: an exact sum where the tower is one, right about a planted thing, and nothing of the model is changed by them."""

import numpy as np
import open_clip
import pytest
import torch
from conftest import TINY
from fixtures.errors import refuses
from fixtures.models import IMAGE, OF_ONE_SIDE, TEXTS, write_model
from PIL import Image
from torch.nn import functional

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data.images import seen_box, square
from clipft_tasks.model import build, similarity
from clipft_tasks.model.clip import Clip
from clipft_tasks.model.heatmap import heatmaps, painted


def made(kind: str, tmp_path) -> Clip:
    torch.manual_seed(0)
    clip = build.from_folder(write_model(tmp_path / "made", (IMAGE | OF_ONE_SIDE)[kind][0], TEXTS["of CLIP"]), source="made")
    clip.model.eval()
    return clip


def images_of(clip: Clip, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, clip.side, clip.side), dtype=torch.uint8)


def test_of_an_average_and_a_projection_the_heat_is_what_each_place_adds_to_the_similarity(home, tmp_path):
    clip = made("convolutional, batch norm (starter)", tmp_path)
    images, texts = images_of(clip), functional.normalize(torch.randn(3, clip.embed_dim), dim=1)
    found = heatmaps(clip, images, texts, [[1], [2]])
    with torch.no_grad():
        trunk, projection = clip.model.visual.trunk, clip.model.visual.head.proj.weight
        places = trunk.forward_features(clip.normalize(images)).flatten(2).transpose(1, 2) @ projection.T  # (n, places, d)
        length = clip.image_features(clip.normalize(images)).norm(dim=1)
        added = places @ texts.T / length[:, None, None] / places.shape[1]
        scores = added.sum(dim=1)
        torch.testing.assert_close(scores, clip.similarity(clip.encode_images(images), texts))  # the sum is the similarity
        for i, chosen in enumerate((1, 2)):
            others = [n for n in range(3) if n != chosen]
            weights = torch.softmax(scores[i, others] * clip.model.logit_scale.exp(), dim=0)
            expected = added[i, :, chosen] - added[i][:, others] @ weights
            expected = (expected / expected.abs().max()).view(5, 5).numpy()
            np.testing.assert_allclose(found[i][0], expected, atol=1e-4)


@pytest.mark.parametrize("compared_by", ["cosine", "dot", "euclidean", "hyperbolic", "bilinear"])
def test_a_transformer_that_reads_one_patch_is_hot_there(compared_by):
    """A tower whose class token attends to everything alike, and whose values are zero but for bright patches."""
    torch.manual_seed(0)
    clip = Clip(open_clip.CLIP(**TINY["model_cfg"]), open_clip.SimpleTokenizer(context_length=32), TINY, "tiny", "")
    clip.similarity = similarity.make(compared_by, 32)
    clip.model.eval()
    visual = clip.model.visual
    with torch.no_grad():
        visual.positional_embedding.zero_()
        for block in visual.transformer.resblocks:
            block.attn.in_proj_weight[:128].zero_()  # every place is attended to alike
            block.mlp.c_proj.weight.zero_()
        visual.transformer.resblocks[0].attn.out_proj.weight.zero_()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 8:16, 24:32] = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        text = clip.similarity.embed_text(clip.image_features(clip.normalize(images)))
        other = clip.similarity.embed_text(clip.image_features(clip.normalize(images * 0)))
    ((heat,),) = heatmaps(clip, images, torch.cat([text, other]), [[0]])
    assert heat.shape == (4, 4) and np.unravel_index(heat.argmax(), heat.shape) == (1, 3)
    assert heat[1, 3] > 0 > np.sort(heat.ravel())[-2]  # all others speak against it


def test_asking_changes_nothing(home, tmp_path):
    clip = made("timm transformer, class token", tmp_path)
    images, texts = images_of(clip), torch.eye(2, clip.embed_dim)
    own, fast = functional.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        before = clip.encode_images(images)
        one = heatmaps(clip, images, texts, [[0], [1]])  # also where the server infers
        assert torch.equal(before, clip.encode_images(images)) and not torch.is_grad_enabled()
    other = heatmaps(clip, images, texts, [[0], [1]])
    np.testing.assert_array_equal(one, other)
    assert functional.scaled_dot_product_attention is own and torch.backends.mha.get_fastpath_enabled() == fast
    assert "forward" not in vars(clip.model.visual.trunk.blocks[-1]) and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in clip.model.parameters())


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48)])
@pytest.mark.parametrize("aspect", ["crop", "pad", "squeeze"])
def test_color_lies_where_the_model_sees_the_place(size, aspect):
    gray = Image.new("RGB", size, (128, 128, 128))
    for row, column in ((0, 0), (1, 1)):
        heat = np.full((2, 2), -1, np.float32)
        heat[row, column] = 1
        image = gray.copy()
        left, top, right, bottom = seen_box(size, aspect)
        x, y = left + (right - left) * (0.25 + 0.5 * column), top + (bottom - top) * (0.25 + 0.5 * row)
        at = min(max(round(x * size[0]), 0), size[0] - 1), min(max(round(y * size[1]), 0), size[1] - 1)
        image.putpixel(at, (255, 255, 255))
        seen = square(image, 32, aspect)
        assert (np.array(np.unravel_index(seen[0].argmax(), seen[0].shape)) // 16 == (row, column)).all()
        colored = np.abs(np.asarray(painted(gray, heat, aspect), int) - 128).sum(axis=2)
        assert colored[at[1], at[0]] >= 0.9 * colored.max() > 0


@pytest.mark.parametrize("kind", OF_ONE_SIDE)
def test_a_tower_of_another_kind_is_refused_in_words(kind, home, tmp_path):
    clip = made(kind, tmp_path)
    with refuses("model.no_heatmap", "where it pools its places is not known"):
        heatmaps(clip, images_of(clip), torch.eye(2, clip.embed_dim), [[0], [1]])


def test_a_tower_that_pools_elsewhere_than_its_kind_does_is_refused(home, tmp_path, monkeypatch):
    clip = made("convolutional, batch norm (starter)", tmp_path)
    monkeypatch.setattr(clip.model.visual.trunk, "forward", lambda images: torch.zeros(len(images), 256))
    with pytest.raises(ClipftError) as refusal:
        heatmaps(clip, images_of(clip), torch.eye(2, clip.embed_dim), [[0], [1]])
    assert refusal.value.code == "model.no_heatmap"

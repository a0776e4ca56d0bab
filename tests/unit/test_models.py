"""Where models come from, and what happens when they cannot be had."""

import pytest
import torch
from fixtures.errors import refuses

from clipft_tasks.model import build
from clipft_tasks.model.clip import token_counts
from clipft_tasks.model.resolution import set_side


@pytest.mark.parametrize(
    ("start", "code", "named"),
    [
        ("ViT-B-33:openai", "model.unknown_start", "open_clip"),
        ("ViT-B-32:nonsense", "model.unknown_tag", "Known: openai"),
        ("ViT-B-32:openai", "model.not_available", "offline"),  # as tests are
        ("/no/such/folder", "model.unknown_start", "model package"),
        ("models:/clipft-general/99", "model.not_registered", "MLflow"),
    ],
)
def test_a_start_model_that_cannot_be_had_says_why(home, start, code, named):
    with refuses(code, start, named):
        build.load(start)


def test_without_a_champion_there_is_advice(home):
    with refuses("model.no_champion", "general", "`starter`"):
        build.load("champion", domain="general")


def test_the_same_side_changes_nothing_and_another_is_taken(home, tiny):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        before = build.load(str(tiny)).encode_images(images)
        same = set_side(build.load(str(tiny)), 32).encode_images(images)
        assert torch.equal(before, same)
        larger = set_side(build.load(str(tiny)), 48)
        assert larger.encode_images(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 32)
    assert larger.config["model_cfg"]["vision_cfg"]["image_size"] == 48


def test_a_side_that_is_no_multiple_of_the_patch_is_refused_with_one_that_is(home, tiny):
    with refuses("model.impossible_side", "images of 44 pixels", "patch of 8", "Use 40"):
        set_side(build.load(str(tiny)), 44)


def test_tokens_are_counted_uncut_whatever_a_tokenizer_pads_with_and_without_padding_all_to_the_longest(home):
    import open_clip

    clip = open_clip.get_tokenizer("ViT-B-32")
    texts = ["a", "!", "hello there! !", *("many words " * n for n in (31, 32, 200, 300, 2047, 4000))]
    expected = [min(len(clip.encode(text)) + 2, 4096) for text in texts]  # with its begin and end
    assert token_counts(clip, texts) == expected and token_counts(clip, []) == []
    asked = []

    def padding_with_ones(some, context_length):
        asked.append(len(some) * context_length)
        tokens = clip(some, context_length=context_length) + 2
        return torch.where(tokens == 2, 1, tokens)

    assert token_counts(padding_with_ones, texts[:1] + texts[3:]) == expected[:1] + expected[3:]
    asked.clear()
    assert set(token_counts(padding_with_ones, [f"image {i}" for i in range(2_000)])) <= {4, 5, 6, 7}
    assert sum(asked) < 2_000 * 100  # tokens with padding: not 4,096 a text

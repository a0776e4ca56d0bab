"""Where models come from, and what happens when they cannot be had."""

import pytest
import torch

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.model import build
from clipft_tasks.model.resolution import set_side


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("ViT-B-33:openai", "nor an open_clip model"),
        ("ViT-B-32:nonsense", "no pretrained tag 'nonsense'. Known: openai"),
        ("ViT-B-32:openai", "cannot be had"),  # offline in tests
        ("/no/such/folder", "nor an open_clip model"),
        ("models:/clipft-general/99", "the registry does not know it"),
    ],
)
def test_a_start_model_that_cannot_be_had_says_why(home, start, said):
    with pytest.raises(ClipftError) as caught:
        build.load(start)
    assert said in str(caught.value)


def test_without_a_champion_there_is_advice(home):
    with pytest.raises(ClipftError, match="Start from `starter` first"):
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
    with pytest.raises(ClipftError, match=r"no multiple of the patch of 8.*Use 40"):
        set_side(build.load(str(tiny)), 44)

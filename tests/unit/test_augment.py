"""Augmentation: one resampling does what flips, turns and crops do one by one, the same in parts as in the whole."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from clipft_tasks.data import augment
from clipft_tasks.data.augment import PLAIN, Geometry
from clipft_tasks.domains import Augment

EVERYTHING = Augment(crop_min=0.3, flip_vertical=True, rotate90=True, brightness=0.4, contrast=0.4)


def images(n: int = 4, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def mapped(theta: list[list[float]], *, gain: float = 1.0, spread: float = 1.0, n: int = 4) -> Geometry:
    return Geometry(torch.tensor([theta] * n), torch.full((n,), gain), torch.full((n,), spread))


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and float((one - other.float()).abs().max()) < 0.01


# Against plain operations ---------------------------------------------------------------------------------------------


def test_plain_changes_nothing_at_the_same_size():
    assert close(augment.apply(images(), augment.draw(4, PLAIN, 0, 5), 32), images())


@pytest.mark.parametrize(
    ("theta", "dims"),
    [([[-1.0, 0, 0], [0, 1, 0]], [3]), ([[1.0, 0, 0], [0, -1, 0]], [2]), ([[-1.0, 0, 0], [0, -1, 0]], [2, 3])],
    ids=["across", "down", "both"],
)
def test_a_flip_is_torchs(theta, dims):
    assert close(augment.apply(images(), mapped(theta), 32), images().flip(dims))


@pytest.mark.parametrize("turns", range(4))
def test_a_quarter_turn_is_torchs(turns):
    cos, sin = [1.0, 0.0, -1.0, 0.0][turns], [0.0, 1.0, 0.0, -1.0][turns]
    turned = augment.apply(images(), mapped([[cos, -sin, 0], [sin, cos, 0]]), 32)
    assert close(turned, torch.rot90(images(), turns, (2, 3)))


@pytest.mark.parametrize(("left", "top"), [(0, 0), (16, 0), (0, 16), (5, 11)])
def test_a_crop_is_a_slice(left, top):
    zoom, center = 32 / 48, [(start + 16) / 48 * 2 - 1 for start in (left, top)]
    cropped = augment.apply(images(side=48), mapped([[zoom, 0, center[0]], [0, zoom, center[1]]]), 32)
    assert close(cropped, images(side=48)[:, :, top : top + 32, left : left + 32])


@pytest.mark.parametrize(("flips", "mirrors"), [(True, 2), (False, 1)], ids=["flips too", "turns alone"])
def test_flips_and_turns_that_are_drawn_are_all_those_allowed(flips, mirrors):
    how = Augment(crop_min=1.0, flip_horizontal=flips, flip_vertical=flips, rotate90=True)
    same = images(1).expand(200, -1, -1, -1)
    possible = [torch.rot90(p, k, (1, 2)) for p in (same[0], same[0].flip(2))[:mirrors] for k in range(4)]
    found = augment.apply(same, augment.draw(200, how, 0, 0), 32)
    which = [[close(f, p) for p in possible] for f in found]
    assert all(sum(w) == 1 for w in which) and np.array(which).any(axis=0).all()


def test_only_what_is_allowed_is_drawn():
    theta = augment.draw(500, Augment(crop_min=0.5, flip_horizontal=False), 0, 0).theta
    zoom = theta[:, 0, 0]
    assert torch.equal(zoom, theta[:, 1, 1]) and not theta[:, 0, 1].any() and not theta[:, 1, 0].any()
    assert 0.5**0.5 <= float(zoom.min()) < 0.72 and 0.98 < float(zoom.max()) <= 1
    assert bool((theta[:, :, 2].abs() <= 1 - zoom[:, None] + 1e-6).all())  # inside the image


def test_brightness_multiplies():
    bright = augment.apply(images(), mapped([[1.0, 0, 0], [0, 1, 0]], gain=1.3), 32)
    assert close(bright, (images().float() * 1.3).clamp(0, 255))


def test_contrast_spreads_about_the_mean():
    plain = images().float()
    mean = plain.mean(dim=(1, 2, 3), keepdim=True)
    for spread in (0.6, 1.4):
        found = augment.apply(images(), mapped([[1.0, 0, 0], [0, 1, 0]], spread=spread), 32)
        assert close(found, ((plain - mean) * spread + mean).clamp(0, 255))


# Batches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("cuts", [(0, 4, 8, 12), (0, 1, 2, 12), (0, 7, 12)])
def test_parts_of_a_batch_are_slices_of_the_whole(how, cuts):
    every, geometry = images(12, 80), augment.draw(12, how, 0, 3)
    whole = augment.apply(every, geometry, 32)
    parts = [slice(a, b) for a, b in pairwise(cuts)]
    assert close(torch.cat([augment.apply(every[p], geometry.part(p), 32) for p in parts]), whole)


def test_the_numbers_are_those_of_seed_and_step():
    def drawn(seed: int, step: int) -> torch.Tensor:
        theta, gain, spread = augment.draw(6, EVERYTHING, seed, step)[:3]
        return torch.cat([theta.flatten(1), gain[:, None], spread[:, None]], dim=1)

    torch.manual_seed(1)
    first = drawn(0, 7)
    torch.manual_seed(2)
    np.random.seed(3)
    assert torch.equal(drawn(0, 7), first)
    every = torch.cat([drawn(seed, step) for seed in range(3) for step in range(8)])
    assert all(len(column.unique()) == len(every) for column in every[:, 6:].T)


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 36, 44, 72])
def test_a_fine_checkerboard_becomes_flat_gray_when_much_smaller(side):
    board = (torch.arange(160)[:, None] + torch.arange(160)) % 2 * 255
    board = board.to(torch.uint8).expand(2, 3, -1, -1)
    assert close(augment.apply(board, augment.draw(2, PLAIN, 0, 0), side), torch.full((2, 3, side, side), 127.5))


@pytest.mark.parametrize(("old", "new"), [(48, 32), (80, 32), (33, 32), (35, 16), (16, 48)])
def test_whatever_the_sizes_the_result_is_finite_and_in_range(old, new):
    found = augment.apply(images(16, old), augment.draw(16, EVERYTHING, 0, 1), new)
    assert found.shape == (16, 3, new, new) and found.dtype == torch.float32
    assert bool(found.isfinite().all()) and float(found.min()) >= 0 and float(found.max()) <= 255

"""Augmentation as data: what happens to each image of a batch is drawn first, then done in one resampling on the device.

Everything random about step `s` derives from (seed, s), so a run that is resumed at `s` sees what an unbroken one would, and
any part of a batch may be computed anywhere, twice if need be.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..devices import moved
from ..domains import Augment

PLAIN = Augment(crop_min=1.0, flip_horizontal=False)  # the whole image as it is


class Geometry(NamedTuple):
    """What is done to each image of a batch; fp32, on the host."""

    theta: Tensor  # (n, 2, 3) affine maps from the new image to the old one
    gain: Tensor  # (n,) brightness
    spread: Tensor  # (n,) contrast
    zoom: float = 1.0  # the smallest side of a crop that may be drawn, as a share of the image's

    def part(self, rows: slice) -> "Geometry":
        return Geometry(self.theta[rows], self.gain[rows], self.spread[rows], self.zoom)


def draw(n: int, how: Augment, seed: int, step: int) -> Geometry:
    """The crops, flips, turns and lights of step `step`'s `n` images."""
    rng = np.random.default_rng([seed, 2, step])
    zoom = np.sqrt(rng.uniform(how.crop_min, 1.0, n))
    shift = rng.uniform(-1, 1, (n, 2)) * (1 - zoom)[:, None]
    turns = rng.integers(0, 4, n) if how.rotate90 else np.zeros(n, int)
    flip = np.stack(
        [
            np.where(how.flip_horizontal & (rng.random(n) < 0.5), -1.0, 1.0),
            np.where(how.flip_vertical & (rng.random(n) < 0.5), -1.0, 1.0),
        ],
        axis=1,
    )
    cos, sin = np.cos(turns * np.pi / 2).round(), np.sin(turns * np.pi / 2).round()
    rotation = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    theta = np.concatenate([rotation * flip[:, None, :] * zoom[:, None, None], shift[:, :, None]], axis=2)
    gain = 1 + rng.uniform(-how.brightness, how.brightness, n)
    spread = 1 + rng.uniform(-how.contrast, how.contrast, n)
    moved, lit, stretched = (torch.from_numpy(x.astype(np.float32)) for x in (theta, gain, spread))
    return Geometry(moved, lit, stretched, how.crop_min**0.5)


def apply(images: Tensor, geometry: Geometry, side: int, *, held: bool = False) -> Tensor:
    """Resample and light a batch on its device.

    Args:
        images: uint8 (n, 3, r, r).
        side: size of the result.
        held: whoever calls holds the geometry until the device is known to be done with it.
    Returns: fp32 in 0-255, (n, 3, side, side).
    """
    n, device = len(images), images.device
    out = images.float()
    if not n:
        return out.new_zeros(0, 3, side, side)
    theta, gain, spread = (moved(x, device, held=held) for x in geometry[:3])
    # Bilinear sampling looks at four pixels: a much larger image is halved first, or fine structure would alias.
    while out.shape[-1] * geometry.zoom >= 2 * side and out.shape[-1] % 2 == 0:
        out = functional.avg_pool2d(out, 2)
    grid = functional.affine_grid(theta, [n, 3, side, side], align_corners=False)
    out = functional.grid_sample(out, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if bool((geometry.gain != 1).any()) or bool((geometry.spread != 1).any()):
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        out = ((out - mean) * spread.view(n, 1, 1, 1) + mean) * gain.view(n, 1, 1, 1)
    return out.clamp_(0, 255)

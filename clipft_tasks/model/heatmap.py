"""Heatmaps: which places of an image speak for a text, by the last layer that still tells places apart.

The embedding's features are, or nearly are, a sum over places: of a feature map that is averaged and projected, or of the values
that the last attention mixes. A place's heat is what its summand adds to the similarity with the text, less what it adds to the
similarity with the other texts, each weighted by how likely the model thinks it. For an average and a projection that is exact
(CAM, Zhou et al. 2016, https://arxiv.org/abs/1512.04150); elsewhere what follows the sum is linearized (attention times gradient of
the last layer: Gandelsman et al. 2024, https://arxiv.org/abs/2310.05916; HiResCAM, Draelos and Carin 2020,
https://arxiv.org/abs/2011.08891). It costs one forward pass, and per text a backward pass through what follows the sum.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..core.errors import ClipftError
from ..data.images import Aspect, seen_box, square
from .attention import instead
from .clip import Clip
from .image_tower import Pooling

COLORS = ((0, 0.25, 0.6, 1), ((255, 255, 246, 214), (190, 178, 98, 22), (60, 50, 40, 60), (0, 90, 165, 205)))  # at, RGBA
MOST_PLACES = 32  # rows or columns of a heatmap; finer ones are averaged down

Heat = np.ndarray  # (rows, columns), float32 from -1 to 1: against and for the text


def heatmaps(clip: Clip, images: Tensor, texts: Tensor, wanted: Sequence[Sequence[int]]) -> list[list[Heat]]:
    """Heatmaps of images, each about some of the texts.

    Args:
        images: uint8 (n, 3, s, s).
        texts: embeddings (m, d) of texts or classes.
        wanted: for each image the numbers of the texts that it is asked about.
    Raises: ClipftError where it is not known how the image tower pools its places.
    """
    slots = max(map(len, wanted), default=0)
    places = _Places(clip, images.shape[-1])
    with torch.inference_mode(False), torch.no_grad():
        texts = texts.to(clip.device, torch.float32).clone()  # whoever infers may have made them where no graph can be
        features = places.watch(lambda: clip.image_features(clip.normalize(images.clone())).float())
        found: list[list[Heat]] = [[] for _ in images]
        for slot in range(slots):
            chosen = torch.tensor([row[min(slot, len(row) - 1)] for row in wanted], device=clip.device)
            score = (features * _direction(clip, features, texts, chosen)).sum()
            heat = places.heat(score, keep=slot + 1 < slots)
            for row, own, one in zip(wanted, found, heat, strict=True):
                if slot < len(row):
                    own.append(one)
    return found


def looked(clip: Clip, rgb: Image.Image, texts: Tensor, chosen: int, *, side: int, shown: int) -> Image.Image | None:
    """A copy of an image, at most `shown` pixels either way, colored where it speaks for the text that is chosen; None where this
    kind of tower has no heatmaps, or the model gives no numbers.

    Args:
        texts: embeddings (m, d). side: of the square that the model sees.
    """
    pixels = torch.from_numpy(square(rgb, side, clip.aspect)[None])
    try:
        heat = heatmaps(clip, pixels, texts, [[chosen]])[0][0]
    except ClipftError as error:
        if error.code != "model.no_heatmap":
            raise
        return None
    if not np.isfinite(heat).all():
        return None
    small = rgb.copy()
    small.thumbnail((shown, shown))
    return painted(small, heat, clip.aspect)


def painted(rgb: Image.Image, heat: Heat, aspect: Aspect) -> Image.Image:
    """The image with what speaks for the text in color over it: yellow, then red."""
    width, height = rgb.size
    left, top, right, bottom = (
        round(share * length) for share, length in zip(seen_box(rgb.size, aspect), (width, height) * 2, strict=True)
    )
    size = (max(1, right - left), max(1, bottom - top))
    fine = Image.fromarray(np.asarray(heat, np.float32).clip(0, 1)).resize(size, Image.Resampling.BILINEAR)
    levels = np.asarray(fine)
    color = np.stack([np.interp(levels, COLORS[0], channel) for channel in COLORS[1]], axis=-1).round().astype(np.uint8)
    out = rgb.convert("RGBA")
    over = Image.new("RGBA", rgb.size)
    over.paste(Image.fromarray(color, "RGBA"), (left, top))
    return Image.alpha_composite(out, over).convert("RGB")


def _direction(clip: Clip, features: Tensor, texts: Tensor, chosen: Tensor) -> Tensor:
    """Along which each image's features (n, d) come nearer to the text that is chosen (n,) than to the others: (n, d).

    Every similarity makes an embedding of features by stretching them; the length is held, so that a place counts by where it
    draws the embedding.
    """
    with torch.enable_grad():
        embeddings = clip.similarity.embed_image(features.detach()).requires_grad_()
        scores = clip.similarity(embeddings, texts)
        own = functional.one_hot(chosen, len(texts)).bool()
        others = scores.detach() * clip.model.logit_scale.detach().exp()
        weights = torch.softmax(others.masked_fill(own, -torch.inf), dim=1) if len(texts) > 1 else torch.zeros_like(others)
        (towards,) = torch.autograd.grad((scores * (own.float() - weights)).sum(), embeddings)
    stretch = embeddings.detach().norm(dim=1) / features.detach().norm(dim=1).clamp_min(1e-12)
    direction: Tensor = towards * stretch[:, None]
    return direction


class _Places:
    """What a tower computes of each place in one forward pass, and what a score makes of it."""

    def __init__(self, clip: Clip, side: int) -> None:
        self._pooling, self._grid, self._kind = clip.tower.pooling(), clip.tower.places(side), clip.tower.kind
        self._seen: list[Tensor] = []

    def watch(self, forward: Callable[[], Tensor]) -> Tensor:
        """What `forward` returns, with a graph that begins at the places."""
        with _replaced(self._pooling, self._pooled):
            features = forward()
        if len(self._seen) != 1 or not features.requires_grad:
            raise ClipftError(
                "a heatmap",
                f"the image tower ({self._kind}) did not pool its places where such towers do",
                "Ask without `explain`.",
                code="model.no_heatmap",
            )
        return features

    def heat(self, score: Tensor, *, keep: bool) -> list[Heat]:
        """What each place adds to the images' scores, one map an image, scaled to at most 1."""
        (seen,) = self._seen
        (gradient,) = torch.autograd.grad(score, seen, retain_graph=keep)
        added = self._per_place(seen.detach() * gradient).float()
        rows, columns = (min(MOST_PLACES, length) for length in added.shape[1:])
        added = functional.adaptive_avg_pool2d(added[:, None], (rows, columns))[:, 0]
        most = added.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return list((added / most).cpu().numpy())

    def _per_place(self, added: Tensor) -> Tensor:
        """Summands (n, heads, places, width), (n, places, width) or (n, channels, rows, columns) -> (n, rows, columns)."""
        if self._grid is None and not self._pooling.attends:
            return added.sum(dim=1)
        if self._pooling.attends:
            added = added.sum(dim=1)
        by_place = added.sum(dim=-1)
        rows, columns = self._grid or _square(by_place.shape[1])
        return by_place[:, by_place.shape[1] - rows * columns :].reshape(-1, rows, columns)  # the rest: class tokens

    def _pooled(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The call in which places are pooled, watched. From here on there is a graph; before it none is needed."""
        if not self._pooling.attends:

            def returned(*args: object, **kwargs: object) -> Tensor:
                return self._leaf(call(*args, **kwargs))

            return returned

        def attending(*args: object, **kwargs: object) -> Tensor:
            with instead(self._attend):
                return call(*args, **kwargs)

        return attending

    def _attend(self, torchs_own: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, *args: object,
                **kwargs: object) -> Tensor:  # fmt: skip
        return torchs_own(query.detach(), key.detach(), self._leaf(value), *args, **kwargs)

    def _leaf(self, places: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # `heatmaps` sets it back
        self._seen.append(places.detach().requires_grad_())
        return self._seen[-1]


def _square(places: int) -> tuple[int, int]:
    """Rows and columns of so many places, of which the first may stand for all."""
    side = int(places**0.5)
    return side, side


@contextmanager
def _replaced(pooling: Pooling, wrap: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> Iterator[None]:
    """The call with something around it, in this block."""
    setattr(pooling.module, pooling.method, wrap(getattr(pooling.module, pooling.method)))
    try:
        yield
    finally:
        delattr(pooling.module, pooling.method)  # the class's own is seen again

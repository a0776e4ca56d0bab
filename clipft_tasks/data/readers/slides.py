"""Whole slides (SVS, NDPI, MRXS, pyramidal TIFF and whatever else OpenSlide reads): each becomes tiles of one size and scale.

A tile is a row: `data.tile_pixels` a side at `data.tile_microns` a pixel, from a grid without overlap. Tiles that hold less tissue
than `data.tile_tissue` are left out and counted. All tiles of a slide are one group. Class, split and caption are the slide's, as in a
folder of images; slides are called by a pseudonym, since archives name them after patients. By openslide-python, of the extra `slides`.
"""

import io
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...core.errors import ClipftError
from ...spec import DataSpec
from .. import pseudonyms
from ..account import Account
from ..images import BadImageError
from .base import Reader, Row, Source, refuse
from .beside import stem, text_of, texts_of
from .folder import pass_over
from .links import Root, root_of
from .tree import files, levels_of

if TYPE_CHECKING:
    from openslide import OpenSlide

ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".czi", ".dcm")
OVERVIEW = 2048  # pixels of the longer side on which tissue is looked for
BRIGHT, DARK = 220, 20  # of 255: glass is at least as bright in each color, what the scanner left out at most as dark
SLACK = 1.02  # how much finer than a slide's own pixels tiles may be asked for


class Slides(Reader):
    """A slide, or a folder tree of slides."""

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        """Open the slides at a path. Raises ClipftError when there is none, or OpenSlide is not installed."""
        try:
            import openslide  # noqa: F401
        except ImportError:
            raise ClipftError(
                f"source slides:{argument}",
                "openslide is not installed",
                "Install `clipft[slides]`.",
                code="source.missing_package",
            ) from None
        path, account = Path(argument).expanduser(), Account()
        root = root_of(path if path.is_dir() else path.parent, options.links_root)
        every = files(root, account) if path.is_dir() else [Path(path.name)] if path.is_file() else []
        account.seen = len(every)
        found = [each for each in every if each.suffix.lower() in ENDINGS]
        if not found:
            fix = f"Known endings: {', '.join(ENDINGS)}."
            raise ClipftError(f"source slides:{path}", "there is no slide", fix, code="source.no_images")
        stems = {stem(each) for each in found}
        texts = texts_of(every, found)
        pass_over(set(every) - set(found) - set(texts.values()), stems, account, root.path)
        levels = levels_of(found, options.levels, len(texts) == len(found), account)
        account.understand(
            f"Tiles of {options.tile_pixels} pixels at {options.tile_microns:g} microns each; a slide is a group."
        )

        def rows() -> Iterator[Row]:
            for number, each in enumerate(found, 1):
                meaning, key = levels.of(each), f"slide/{pseudonyms.pseudonym(str(each))}"
                where = f"slide {number} of {len(found)}, by path"
                try:
                    caption = text_of(root, texts.get(each))
                    slide = Tiled(root, each, options)
                    tiles = list(slide.tiles())
                except (BadImageError, OSError) as error:
                    reason = partial(refuse, str(error), getattr(error, "kind", "cannot be read"))
                    yield Row(where, reason, key, caption=where)
                    continue
                account.pass_over("tiles without tissue", slide.count - len(tiles))
                for column, row in tiles:
                    yield Row(
                        where=f"{where}, tile {column},{row}",
                        image_bytes=partial(slide.tile, column, row),
                        key=f"{key}#{column},{row}",
                        caption=caption,
                        label=meaning.label,
                        group=pseudonyms.pseudonym(meaning.group) if meaning.group else key,
                        split=meaning.split,
                    )

        return Source(rows, name="slides", account=account)


class Tiled:
    """One slide as a grid of tiles. Raises BadImageError for a file that is no slide, or cannot be had at the scale asked for."""

    def __init__(self, root: Root, name: Path, options: DataSpec) -> None:
        path = (root / name).resolve()
        if not root.holds(path):
            raise BadImageError(f"it leads outside {root}; see data.links_root", "outside the source")
        self.path, self.pixels, self.least = str(path), options.tile_pixels, options.tile_tissue
        slide = _opened(self.path)
        told = slide.properties
        try:
            microns = [float(told[f"openslide.mpp-{axis}"]) for axis in "xy"]
        except (KeyError, ValueError):
            raise BadImageError("it does not say how many microns a pixel is", "slides without a scale") from None
        if options.tile_microns * SLACK < max(microns):
            why = f"its pixels are {max(microns):g} microns, and {options.tile_microns:g} are asked for (data.tile_microns)"
            raise BadImageError(why, "slides of a coarser scale")
        self.left, self.top = (int(told.get(f"openslide.bounds-{axis}", 0)) for axis in "xy")
        width = int(told.get("openslide.bounds-width", slide.dimensions[0]))
        height = int(told.get("openslide.bounds-height", slide.dimensions[1]))
        self.step = tuple(
            options.tile_pixels * options.tile_microns / each for each in microns
        )  # of a tile, in the slide's pixels
        self.columns, self.rows = int(width / self.step[0] + 1e-6), int(height / self.step[1] + 1e-6)
        self.count = self.columns * self.rows
        if not self.count:
            raise BadImageError(f"{width}x{height} pixels hold no whole tile", "too small")
        self.level = slide.get_best_level_for_downsample(min(s / self.pixels for s in self.step) * SLACK)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """(column, row) of the tiles that hold tissue, line by line."""
        tissue, scale = self._tissue()
        for row in range(self.rows):
            for column in range(self.columns):
                x, y = column * self.step[0] * scale, row * self.step[1] * scale
                x_end, y_end = x + self.step[0] * scale, y + self.step[1] * scale
                part = tissue[int(y) : max(int(y) + 1, round(y_end)), int(x) : max(int(x) + 1, round(x_end))]
                if part.size and part.mean() >= self.least:
                    yield column, row

    def tile(self, column: int, row: int) -> bytes:
        """A tile as JPEG, over white where the slide holds nothing. Raises BadImageError where the slide is broken there."""
        slide = _opened(self.path)
        zoom = slide.level_downsamples[self.level]
        place = round(self.left + column * self.step[0]), round(self.top + row * self.step[1])
        size = tuple(max(1, round(s / zoom)) for s in self.step)
        rgb = _region(slide, place, self.level, size)
        out = io.BytesIO()
        if rgb.size != (self.pixels, self.pixels):
            rgb = rgb.resize((self.pixels, self.pixels), Image.Resampling.LANCZOS)
        rgb.save(out, "JPEG", quality=95, subsampling=0)
        return out.getvalue()

    def _tissue(self) -> tuple[np.ndarray, float]:
        """Which pixels of an overview hold tissue (rows, columns), and how large one of the slide's own pixels is on it."""
        slide = _opened(self.path)
        whole = self.columns * self.step[0], self.rows * self.step[1]
        level = slide.get_best_level_for_downsample(max(1.0, max(whole) / OVERVIEW))
        zoom = slide.level_downsamples[level]
        size = tuple(max(1, round(side / zoom)) for side in whole)
        if max(size) > 8 * OVERVIEW:
            raise BadImageError(
                f"it has no small copy of itself: {slide.dimensions} pixels at one scale only", "slides of one scale"
            )
        overview = np.asarray(_region(slide, (self.left, self.top), level, size))
        return (overview.min(2) < BRIGHT) & (overview.max(2) > DARK), 1 / zoom


@lru_cache(maxsize=2)
def _opened(path: str) -> "OpenSlide":
    import openslide

    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        raise BadImageError(f"OpenSlide does not read it: {error}".replace(path, "the file"), "no slide") from error


def _region(slide: "OpenSlide", place: tuple[int, int], level: int, size: tuple[int, ...]) -> Image.Image:
    import openslide

    try:
        region = slide.read_region(place, level, (size[0], size[1]))
    except openslide.OpenSlideError as error:
        _opened.cache_clear()  # a slide that failed once fails for ever
        raise BadImageError(f"cut short or broken: {error}", "cut short or broken") from error
    white = Image.new("RGBA", region.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, region).convert("RGB")

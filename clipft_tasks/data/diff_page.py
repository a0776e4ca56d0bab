"""What differs between two dataset versions as a page: one self-contained HTML file with examples of the images, readable offline."""

import datetime
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from ..contracts.dataset import ChangedImages, DatasetDiff
from ..domains import domain_names, get_domain
from . import versioning
from .images import open_image, thumbnail
from .splits import SPLITS

SIDE = 160  # of an example image, pixels
BINS = 12  # of the sizes


@dataclass(frozen=True)
class Example:
    """An image that changed: `src` is a small copy as a data URL, `said` what changed."""

    src: str
    name: str
    said: str


@dataclass(frozen=True)
class Section:
    """One kind of change."""

    title: str
    count: int
    examples: list[Example]


def write(path: Path, diff: DatasetDiff) -> None:
    """Write the page of a difference. Raises as `versioning.fetch`, OSError."""
    old, new = (versioning.fetch(versioning.find(tag, "")) for tag in (diff.old, diff.new))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    html = environment.get_template("diff.html.j2").render(
        diff=diff,
        splits=SPLITS,
        sections=_sections(diff, old, new),
        classes=_classes(old, new),
        sizes=_sizes(old.frame, new.frame),
        sources=[(v.tag, v.card.source, v.card.license) for v in (old.version, new.version)],
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.write_text(html, "utf-8")


def _sections(diff: DatasetDiff, old: versioning.Dataset, new: versioning.Dataset) -> list[Section]:
    before, after = (dataset.frame.drop_duplicates("name").set_index("name") for dataset in (old, new))

    def changed(column: str) -> Callable[[str], str]:
        return lambda name: f"{_said(before, name, column)} → {_said(after, name, column)}"

    kinds: list[tuple[str, ChangedImages, versioning.Dataset, Callable[[str], str]]] = [
        ("Added", diff.added, new, lambda name: _said(after, name, "label") or _said(after, name, "caption")),
        ("Removed", diff.removed, old, lambda name: _said(before, name, "label") or _said(before, name, "caption")),
        ("Other labels", diff.relabeled, new, changed("label")),
        ("Other captions", diff.recaptioned, new, changed("caption")),
        ("Other groups", diff.regrouped, new, changed("group")),
        ("Other splits", diff.moved, new, changed("split")),
    ]
    return [
        Section(title, found.count, [Example(_small(dataset, name), name, say(name)) for name in found.examples])
        for title, found, dataset, say in kinds
        if found.count
    ]


def _said(frame: pd.DataFrame, name: str, column: str) -> str:
    return str(frame[column].get(name, "")) or "(none)" if name in frame.index else "(under another name)"


def _small(dataset: versioning.Dataset, name: str) -> str:
    rows = dataset.frame[dataset.frame["name"] == name]
    if rows.empty:
        return ""
    domain = dataset.version.domain
    bits = get_domain(domain).gray_bits if domain in domain_names() else 16
    row = cast(versioning.Packed, next(rows.itertuples()))
    return thumbnail(open_image(dataset.image_bytes(row), gray_bits=bits).rgb, SIDE)


def _classes(old: versioning.Dataset, new: versioning.Dataset) -> list[tuple[str, int, int]]:
    """Every class with its rows before and after."""
    counts = [dataset.frame["label"].value_counts() for dataset in (old, new)]
    names = sorted(set(counts[0].index) | set(counts[1].index))
    return [(name, int(counts[0].get(name, 0)), int(counts[1].get(name, 0))) for name in names]


def _sizes(before: pd.DataFrame, after: pd.DataFrame) -> list[tuple[str, int, int]]:
    """How many images have a shorter side within some pixels, before and after."""
    sides = [frame.drop_duplicates("sha256")[["width", "height"]].min(axis=1).to_numpy() for frame in (before, after)]
    both = np.concatenate(sides)
    if not len(both):
        return []
    edges = np.unique(np.geomspace(max(1, both.min()), both.max() + 1, BINS + 1).astype(int))
    if len(edges) < 2:
        edges = np.array([int(both.min()), int(both.max()) + 1])
    edges[-1] = int(both.max()) + 1
    counts = [np.histogram(side, edges)[0] for side in sides]
    names = [f"{low} to {high - 1}" if high - 1 > low else f"{low}" for low, high in itertools.pairwise(edges)]
    return [(name, int(a), int(b)) for name, a, b in zip(names, *counts, strict=True) if a or b]

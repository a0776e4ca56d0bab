"""The data report: one self-contained HTML page, readable offline, that says whether a data set may become a version."""

import datetime
from pathlib import Path
from typing import cast

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from ..contracts.dataset import DatasetCard, RejectedRow
from ..domains import get_domain
from . import shards
from .expectations import Check
from .images import open_image, thumbnail
from .splits import SPLITS
from .versioning import Packed

PER_CLASS = 4
SIDE = 160  # of an example image, pixels


def write(
    path: Path,
    frame: pd.DataFrame,
    card: DatasetCard,
    checks: list[Check],
    rejected: list[RejectedRow],
    folders: list[Path],
) -> None:
    """Write the page. `frame` comes from `expectations.describe`; `folders` are searched for the example images."""
    table = frame.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0)
    classes = [(str(name), row.to_dict(), row.sum() / len(frame)) for name, row in table.iterrows()]
    facts = [
        ("Different captions", f"{frame['caption'].nunique():,} over {len(frame):,} rows"),
        ("Tokens per caption", f"{frame['tokens'].min()} to {frame['tokens'].max()}, median {frame['tokens'].median():.0f}"),
        ("Captions that the tokenizer would cut", f"{int(frame['truncated'].sum()):,}"),
        (
            "Image sizes",
            ", ".join(f"{w}x{h} ({n})" for (w, h), n in frame.groupby(["width", "height"]).size().nlargest(5).items()),
        ),
        ("Modes and formats", ", ".join(f"{m} {f} ({n})" for (m, f), n in frame.groupby(["mode", "format"]).size().items())),
        ("Groups", f"{frame.loc[frame['group'] != '', 'group'].nunique():,}"),
        ("Content digest", card.content),
    ]
    gray_bits = get_domain(card.domain).gray_bits
    images = [
        {"src": _thumbnail(cast(Packed, row), folders, gray_bits), "caption": row.caption, "split": row.split}
        for row in examples(frame).itertuples()
    ]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    html = environment.get_template("report.html.j2").render(
        title=f"Data report: {card.domain}",
        card=card,
        checks=checks,
        splits=SPLITS,
        classes=classes,
        facts=facts,
        images=images,
        rejected=rejected,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.write_text(html, "utf-8")


def examples(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose images the page shows."""
    return frame.groupby("label", group_keys=False).head(PER_CLASS).head(24)


def _thumbnail(row: Packed, folders: list[Path], gray_bits: int) -> str:
    for folder in folders:
        if (folder / row.shard).is_file():
            data = shards.read(folder, shards.Place(row.shard, int(row.offset), int(row.length)))
            return thumbnail(open_image(data, gray_bits=gray_bits).rgb, SIDE)
    return ""

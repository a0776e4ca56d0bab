"""The data report: one self-contained HTML page, readable offline, that says whether a data set may become a version."""

import datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, select_autoescape

from ..contracts.dataset import DatasetCard, RejectedRow
from ..domains import get_domain
from .expectations import Check
from .gallery import Thumbnails, few_groups, gallery
from .splits import SPLITS

SHARDS = 16  # that are brought to this machine for the page, 64 MiB each


def write(
    path: Path,
    frame: pd.DataFrame,
    card: DatasetCard,
    checks: list[Check],
    rejected: list[RejectedRow],
    folders: list[Path],
    left_out: pd.DataFrame,
    far: pd.Series | None = None,
) -> None:
    """Write the page.

    Args:
        frame: from `expectations.describe`.
        folders: are searched for the images that are shown.
        left_out: rows that were read and are in no split, with `reason`.
        far: of rows that a model embedded, by index: how far each is from those most like it.
    """
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
    images = gallery(frame, left_out, Thumbnails(folders, get_domain(card.domain).gray_bits), far)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    html = environment.get_template("report.html.j2").render(
        title=f"Data report: {card.domain}",
        card=card,
        checks=checks,
        splits=SPLITS,
        classes=classes,
        facts=facts,
        gallery=images,
        embedded=0 if far is None else len(far),
        few_groups=few_groups(frame),
        rejected=rejected,
        when=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    path.write_text(html, "utf-8")


def shards_shown(frame: pd.DataFrame, left_out: pd.DataFrame) -> set[str]:
    """The shards whose images the page shows: those with most of them, where they would be many to bring here."""
    images = Thumbnails([], 8)
    gallery(frame, left_out, images)
    return {shard for shard, _ in images.asked.most_common(SHARDS)}

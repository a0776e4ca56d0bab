"""The review page: one self-contained HTML file on which a person decides what becomes of doubtful rows."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape
from pydantic import BaseModel

from ..core.files import atomic_write
from ..data.images import open_image, thumbnail
from ..data.versioning import Dataset
from ..domains import get_domain
from .review import Doubtful

SIDE, NEAR_SIDE = 256, 96  # pixels of an image, and of those beside it
GUESSES = 9  # classes that a row offers by number, where there are more
LONGEST = 4000  # letters of a caption


class NearRow(BaseModel):
    """A row beside another; `image` names it, `label` is a class id."""

    image: str
    label: int


class PageRow(BaseModel):
    """A row as the page's script reads it; `label`, `likely` and `guesses` are class ids."""

    key: str
    image: str
    name: str
    caption: str
    group: str
    split: str
    label: int
    likely: int
    guesses: list[int]
    why: str
    near: list[NearRow]


class PageData(BaseModel):
    """All that the page's script reads. `images` are data URLs by name."""

    version: str
    digest: str
    classes: list[str]
    rows: list[PageRow]
    images: dict[str, str]


def write(path: Path, dataset: Dataset, found: Doubtful, most: int) -> int:
    """Write the page of the most doubtful rows, at most `most`. Returns how many there are."""
    version = dataset.version
    chosen = found.order[:most].tolist()
    images: dict[str, str] = {}
    gray_bits = get_domain(version.domain).gray_bits

    def image(row: int, side: int) -> str:
        name = f"{found.rows.frame['sha256'].iloc[row][:16]}-{side}"
        if name not in images:
            rgb = open_image(dataset.image_bytes(found.rows.frame.iloc[row]), gray_bits=gray_bits).rgb
            images[name] = thumbnail(rgb, side)
        return name

    rows = []
    for i in chosen:
        row, near = found.rows.frame.iloc[i], found.nearest(i)
        shares = found.doubts.shares[i]
        rows.append(
            PageRow(
                key=row["key"],
                image=image(i, SIDE),
                name=row["name"],
                caption=row["caption"][:LONGEST],
                group=row["group"],
                split=row["split"],
                label=int(found.rows.labels[i]),
                likely=int(found.doubts.likely[i]),
                guesses=[int(c) for c in (-shares).argsort(kind="stable") if c != found.rows.labels[i]][:GUESSES],
                why=_why(found, i),
                near=[NearRow(image=image(n, NEAR_SIDE), label=int(found.rows.labels[n])) for n in near],
            )
        )
    data = PageData(version=version.tag, digest=version.card.content[:12], classes=found.rows.classes, rows=rows, images=images)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))
    html = environment.get_template("review.html.j2").render(
        data=data.model_dump(),
        version=version.tag,
        sentence=found.sentence,
        rows=rows,
        total=f"{len(found.rows.frame):,}",
        settled=found.settled,
        model=found.model,
        license=version.card.license,
    )
    atomic_write(path, html)
    return len(rows)


def _why(found: Doubtful, row: int) -> str:
    """What speaks against a row's label."""
    own, likely = max(0.0, found.doubts.own[row]), found.doubts.likely[row]
    other = max(0.0, float(found.doubts.shares[row, likely]))
    return f"By its embedding: own class {own:.0%}, the likeliest other {min(1.0, other):.0%}."

"""From a source's rows to a staged data set: decoded and described, packed into shards, split, with a card.

manifest.parquet, splits.parquet, datacard.json   as a version holds them
shards/                                           those that the last version does not hold already
rejected.jsonl                                    the rows that were not taken, each with its reason
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pandas as pd

from ..contracts.dataset import DatasetCard, RejectedRow
from ..core.console import progress
from ..core.errors import ClipftError, Transient
from ..domains import Domain
from ..spec import DataSpec
from . import manifest, shards, splits, versioning
from .account import finish
from .images import BadImage, open_image, perceptual_hash
from .metadata import stripped
from .readers import Row, Source

MAX_WORDS = 1000
EXTENSIONS = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic"}  # of other formats it is the name in small letters
STRADDLES = "it resembles, or shares a group with, rows of two different splits"


@dataclass(frozen=True)
class Earlier:
    """What the domain's versions hold already.

    Attributes:
        tag: of the newest; "" before the first.
        frame: its manifest.
        ledger: the split of every image, by sha256, that any version ever held.
    """

    tag: str
    frame: pd.DataFrame
    ledger: dict[str, str]

    @classmethod
    def of(cls, domain: str) -> Self:
        known = versioning.versions(domain)
        if not known:
            return cls("", pd.DataFrame(columns=list(manifest.COLUMNS)), {})
        return cls(known[-1].tag, versioning.read_manifest(known[-1]), versioning.splits_ledger(domain))


@dataclass(frozen=True)
class TakenRow:
    """A row whose image was decoded; `where` a person finds it, the rest as in a manifest. Its place comes when it is packed."""

    key: str
    name: str
    caption: str
    label: str
    group: str
    split: str
    width: int
    height: int
    mode: str
    format: str
    sha256: str
    phash: str
    where: str
    shard: str = ""
    offset: int = 0
    length: int = 0


def stage(
    name: str, source: Source, options: DataSpec, domain: Domain, earlier: Earlier, folder: Path
) -> tuple[DatasetCard, list[RejectedRow]]:
    """Fill a staging folder.

    Args:
        name: the source as the spec names it.
    Returns: the card, and the rows that were not taken. Where not one was, the card has no rows and no manifest is written.
    Raises: OSError when the folder cannot be written.
    """
    template = options.caption_template or domain.caption
    rows, rejected = take(progress(source.rows(), "images", source.total), template, domain.gray_bits, earlier.frame, folder)
    splits_of = assign_splits(rows, options, domain, earlier.ledger)
    kept = [replace(row, split=split) for row, split in zip(rows, splits_of, strict=True) if split]
    rejected += [
        RejectedRow(where=row.where, name=row.name, reason=STRADDLES, kind="between two splits")
        for row, split in zip(rows, splits_of, strict=True)
        if not split
    ]
    lines = [json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rejected]
    (folder / "rejected.jsonl").write_text("".join(lines), "utf-8", errors="backslashreplace")
    given = {row.key: row.split for row in rows}
    account = finish(
        source.account,
        domain,
        [row.label for row in kept],
        [row.group for row in kept],
        [given[row.key] for row in kept],
        rejected,
    )
    said = {"origin": options.origin, "consent": options.consent, "account": account}
    license = options.license or source.license
    card = card_of(name, license, domain.name, kept, len(rejected), earlier.tag).model_copy(update=said)
    if kept:
        manifest.write(pd.DataFrame([vars(row) for row in kept]), folder / "manifest.parquet")
        ledger = earlier.ledger | {row.sha256: row.split for row in kept}
        pd.DataFrame(sorted(ledger.items()), columns=["sha256", "split"]).to_parquet(folder / "splits.parquet")
        (folder / "datacard.json").write_text(json.dumps(card.to_json(), indent=1, sort_keys=True))
    return card, rejected


def take(
    rows: Iterable[Row], template: str, gray_bits: int, earlier: pd.DataFrame, folder: Path
) -> tuple[list[TakenRow], list[RejectedRow]]:
    """Every row is decoded and described; bytes that the last version already holds are not packed again.

    Args:
        template: caption of a row that has a label alone.
        gray_bits: see `images.deep_gray`.
        earlier: manifest of the last version. folder: for new shards.
    """
    taken: dict[str, TakenRow] = {}
    rejected: list[RejectedRow] = []
    places = {r.key: shards.Place(r.shard, int(r.offset), int(r.length)) for r in earlier.itertuples()}
    names: dict[str, int] = {}

    def entries() -> Iterator[shards.Entry]:
        for row in rows:
            try:
                caption = caption_of(row, template)
                if row.split and row.split not in splits.SPLITS:
                    raise BadImage(f"split {row.split!r} is none of {', '.join(splits.SPLITS)}", "unknown split")
                data = stripped(row.image_bytes())
                image = open_image(data, gray_bits=gray_bits)
            except (ClipftError, Transient):  # something is missing here, for every row
                raise
            except Exception as error:  # whatever one row raises is that row's reason, and the others go on
                rejected.append(refused(row, error))
                continue
            meta = {"caption": caption, "label": row.label, "group": row.group}
            digest = hashlib.sha256(data)
            sha256 = digest.hexdigest()
            digest.update(json.dumps(meta, sort_keys=True).encode())
            key = digest.hexdigest()[:32]
            if key in taken:
                reason = f"exact duplicate of {taken[key].name} (same image, caption and label)"
                rejected.append(RejectedRow(where=row.where, name=row.key, reason=reason, kind="exact duplicates"))
                continue
            names[row.key] = names.get(row.key, 0) + 1
            taken[key] = TakenRow(
                key=key,
                name=row.key if names[row.key] == 1 else f"{row.key}#{names[row.key]}",
                caption=caption,
                label=row.label,
                group=row.group,
                split=row.split,
                width=image.width,
                height=image.height,
                mode=image.mode,
                format=image.format,
                sha256=sha256,
                phash=perceptual_hash(image.rgb).hex(),
                where=row.where,
            )
            if key not in places:
                yield shards.Entry(key, EXTENSIONS.get(image.format, image.format.lower()), data, meta)

    for key, place in shards.pack(entries(), folder / "shards"):
        places[key] = place
    return [replace(row, **vars(places[row.key])) for row in taken.values()], rejected


def refused(row: Row, error: Exception) -> RejectedRow:
    """The row with the reason that its error is."""
    if isinstance(error, BadImage):
        return RejectedRow(where=row.where, name=row.key, reason=str(error), kind=error.kind)
    reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return RejectedRow(where=row.where, name=row.key, reason=reason, kind="cannot be read")


def caption_of(row: Row, template: str) -> str:
    """A row's caption on one line, made of its label where it has none. Raises BadImage with the reason where it cannot be."""
    caption = " ".join(row.caption.split())
    try:
        "".join((row.key, caption, row.label, row.group)).encode()
    except UnicodeEncodeError as error:
        raise BadImage("a name or text of it holds half a character", "text of unknown encoding") from error
    if not caption and row.label:
        caption = template.replace("{}", row.label)
    if not caption:
        raise BadImage("it has neither a caption nor a label", "neither caption nor label")
    words = caption.count(" ") + 1
    if words > MAX_WORDS:
        raise BadImage(f"its caption has {words:,} words, more than the limit of {MAX_WORDS:,}", "caption too long")
    return caption


def assign_splits(rows: list[TakenRow], options: DataSpec, domain: Domain, ledger: dict[str, str]) -> list[str]:
    """The split of each row; "" for one that straddles two and can be put into neither."""
    if not rows:
        return []
    fixed = [ledger.get(row.sha256, row.split) for row in rows]
    duplicates = splits.near_duplicates([row.phash for row in rows], domain.near_duplicate_bits, domain.augment)
    component = splits.components(len(rows), duplicates, [row.group for row in rows])
    shares = {"val": options.val_share, "test": options.test_share}
    shares["train"] = 1 - sum(shares.values())
    assigned = splits.assign(component, [row.label for row in rows], fixed, shares, options.split_seed)
    straddling = set(assigned.straddling)
    return ["" if i in straddling else split for i, split in enumerate(assigned.splits)]


def card_of(source: str, license: str, domain: str, rows: list[TakenRow], rejected: int, parent: str) -> DatasetCard:
    """The card of staged rows."""
    labels = Counter(row.label for row in rows if row.label)
    identity = sorted((row.key, row.split) for row in rows)
    return DatasetCard(
        domain=domain,
        source=source,
        license=license,
        rows=len(rows),
        rejected=rejected,
        counts={split: sum(row.split == split for row in rows) for split in splits.SPLITS},
        classes={label: labels[label] for label in sorted(labels)},
        content=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        parents=[parent] if parent else [],
    )


def read_rejected(folder: Path) -> list[RejectedRow]:
    """The rows of a staging folder that were not taken."""
    lines = (folder / "rejected.jsonl").read_text("utf-8").splitlines()
    return [RejectedRow.model_validate_json(line) for line in lines]


def read_card(folder: Path) -> DatasetCard:
    """The card of a staging folder."""
    path = folder / "datacard.json"
    return DatasetCard.from_json(json.loads(path.read_text()), str(path))

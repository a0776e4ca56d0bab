"""From a source's rows to a staged data set: decoded and described, packed into shards, split, with a card.

taken.parquet                                     the rows that were read, with the source's own splits
manifest.parquet, splits.parquet, datacard.json   manifest, split ledger and card; decisions.parquet where people reviewed rows
shards/                                           the images that the last version does not hold already
refused.jsonl, account.json                       the rows that could not be read, each with its reason; what else was found
rejected.jsonl                                    the same, and the rows that no split could take

The second line follows from the first and from what the domain's versions hold; `rebase` makes it again, in another folder, when
these have moved on.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

import pandas as pd

from ..contracts.dataset import DatasetCard, RejectedRow, SourceAccount, shortened
from ..contracts.review import DecisionsFile
from ..core.console import progress
from ..core.errors import ClipftError
from ..core.files import atomic_path, atomic_write, link_or_copy, own_folder
from ..domains import Domain
from ..spec import DataSpec
from . import manifest, shards, splits, tables, versioning
from .account import Account, finish
from .decisions import Decisions
from .describe import Described
from .ledger import Ledger, Likeness, place
from .packing import TakenRow, key_of, take
from .readers import Row, Source
from .readers.version_rows import rows_again
from .tombstones import PASSED_OVER, Tombstones


@dataclass(frozen=True)
class Earlier:
    """What the domain's versions hold already.

    Attributes:
        newest: the newest; None before the first.
        frame: its manifest.
        ledger: of all images that any version ever held.
        major: how often the domain was split anew, from 1.
        decisions: what people decided of rows.
        erased: what was erased from the domain.
    """

    newest: versioning.Version | None
    frame: pd.DataFrame
    ledger: Ledger
    major: int = 1
    decisions: Decisions = field(default_factory=Decisions.empty)
    erased: Tombstones = field(default_factory=Tombstones)

    @classmethod
    def of(cls, domain: str) -> Self:
        known, erased = versioning.versions(domain), Tombstones.of(domain)
        if not known:
            return cls(None, pd.DataFrame(columns=list(manifest.COLUMNS)), Ledger.empty(), erased=erased)
        newest = known[-1]
        rows = versioning.read_manifest(newest)
        ledger = versioning.read_ledger(newest, rows)
        return cls(newest, rows, ledger, newest.card.major, versioning.read_decisions(newest), erased)

    def parents(self, content: str) -> list[str]:
        """Of a version of that content; of what is the newest version's, those that it has."""
        if self.newest is None:
            return []
        return self.newest.card.parents if self.newest.card.content == content else [self.newest.tag]

    def reviewed(self, files: Iterable[DecisionsFile], template: str, *, skip: bool = False) -> Self:
        """The same with more decisions, each file's on the version that it names. Raises as `Decisions.of` and `joined`."""
        known = self.decisions
        for file in files:
            version = versioning.find(file.version, "")
            rows = versioning.read_manifest(version)
            made, names = Decisions.of(file, rows, template), dict(zip(rows["sha256"], rows["name"], strict=True))
            known = known.joined(made, known.since(versioning.read_decisions(version)), names, skip=skip)
        return replace(self, decisions=known)

    def forgotten(self) -> Self:
        """The same without ledger: the next version splits the domain anew."""
        return replace(self, ledger=Ledger.empty(), major=self.major + 1)


def stage(
    name: str,
    source: Source,
    options: DataSpec,
    domain: Domain,
    earlier: Earlier,
    folder: Path,
    known: Mapping[str, Described] = MappingProxyType({}),
) -> tuple[DatasetCard, list[RejectedRow]]:
    """Fill a staging folder.

    Args:
        name: the source as the spec names it.
        known: what other tasks found out about images already, by sha256.
    Returns: the card, and the rows that were not taken. Where not one was, the card has no rows and no manifest is written.
    Raises: OSError when the folder cannot be written.
    """
    template = options.caption_template or domain.caption
    told = source.account

    def is_erased(sha256: str, group: str) -> bool:
        told.pass_over(PASSED_OVER, int(found := earlier.erased.holds(sha256, group)))
        return found

    images = progress(source.rows(), "images", source.total)
    rows, refused = take(images, template, domain.gray_bits, earlier.frame, folder, known, is_erased)
    _write_rejected(refused, folder / "refused.jsonl")
    columns = {name: [getattr(row, name) for row in rows] for name in TakenRow.__dataclass_fields__}
    pd.DataFrame(columns).to_parquet(folder / "taken.parquet")
    found = SourceAccount(
        seen=told.seen, passed_over=dict(told.passed_over), understood=told.understood, warnings=told.warnings
    )
    atomic_write(folder / "account.json", found.model_dump_json())
    about = {"source": name} | {
        field: getattr(options, field) or getattr(source, field) for field in ("license", "origin", "consent")
    }
    return split_rows(about, options, domain, earlier, folder)


def rows_of(version: versioning.Version) -> Source:
    """A version's own rows as a source, without their splits."""

    def rows() -> Iterator[Row]:
        kin = versioning.read_ledger(version, versioning.read_manifest(version)).kin()
        yield from rows_again(versioning.fetch(version), splits=False, kin=kin)

    card = version.card
    return Source(rows, license=card.license, origin=card.origin, consent=card.consent, name=card.source, total=card.rows)


def split_rows(
    about: dict[str, str], options: DataSpec, domain: Domain, earlier: Earlier, folder: Path
) -> tuple[DatasetCard, list[RejectedRow]]:
    """Split the rows that were taken, and write manifest, ledger, card and all rejected rows.

    Args:
        about: what the card says of the source as it is: source, license, origin, consent.
    Returns: as `stage`.
    """
    taken, rejected = pd.read_parquet(folder / "taken.parquet"), read_rejected(folder, "refused.jsonl")
    decided = earlier.decisions.applied(taken, _key_in(folder, earlier))
    rows = decided.rows
    shares = {"val": options.val_share, "test": options.test_share}
    shares["train"] = 1 - sum(shares.values())
    alike = Likeness(domain.near_duplicate_bits, domain.augment)
    placed = place(rows, earlier.ledger, alike, shares, options.split_seed, domain.name)
    rejected += [
        RejectedRow(where=rows["where"][i], name=rows["name"][i], reason=why, kind="between two splits")
        for i, why in sorted(placed.reasons.items())
    ]
    _write_rejected(rejected, folder / "rejected.jsonl")
    kept = rows.assign(said=rows["split"], split=placed.splits)
    kept = kept[kept["split"] != ""]
    told = _read_account(folder)
    if decided.sentence:
        told.understand(decided.sentence)
    labels, groups, said, captions = (kept[name].to_numpy(object) for name in ("label", "group", "said", "caption"))
    account = finish(told, domain, labels, groups, said, rejected, captions)
    card = card_of(about, domain.name, kept, len(rejected), earlier).model_copy(
        update={"kept_splits": placed.overruled, "parted": placed.parted, "account": account}
    )
    if len(kept):
        with atomic_path(folder / versioning.STAGED_MANIFEST) as path:
            manifest.write(kept, path)
        with atomic_path(folder / versioning.STAGED_LEDGER) as path:
            earlier.ledger.joined(kept).joined_kin(kept).frame.to_parquet(path, compression="zstd")
        if len(earlier.decisions.frame):
            with atomic_path(folder / tables.DECISIONS) as path:
                earlier.decisions.frame.to_parquet(path)
        atomic_write(folder / "datacard.json", json.dumps(card.to_json(), indent=1, sort_keys=True))
    return card, rejected


def settle(building: Path, name: str) -> Path:
    """Move a staging folder to its place, which its content names: what is staged again unchanged lies where it lay.

    Args:
        name: of the kind of run, with which the folder's begins.
    """
    digest = hashlib.sha256((building / "rejected.jsonl").read_bytes())
    for file in ("datacard.json", "manifest.parquet"):  # the latter says where images lie, which an erasure changes
        if (building / file).exists():
            digest.update((building / file).read_bytes())
    place = building.with_name(f"{name}-{digest.hexdigest()[:12]}")
    try:
        for shard in (place / "shards").iterdir() if place.exists() else ():
            shards.check(shard, shard.name)
    except ClipftError:
        shutil.rmtree(place)
    try:
        building.rename(place)
    except OSError:  # another run was quicker, or a run of before staged the same
        if not place.exists():
            raise
        os.utime(place)
    return place


def rebase(options: DataSpec, domain: Domain, folder: Path) -> Path:
    """Split staged rows again, on the version that is the newest now: another run has made one since they were staged.

    Returns: a staging folder of its own.
    Raises: ClipftError where a release before staged them, or where no row is left.
    """
    if not (folder / "taken.parquet").exists():
        why = "an earlier release staged them, on a version that is not the newest any more"
        raise ClipftError(f"staged rows {folder}", why, "Ingest the source again.", code="dataset.staged_before")
    before, earlier = read_card(folder), Earlier.of(domain.name)
    if before.major > earlier.major:  # they were to be split anew
        earlier = earlier.forgotten()
    about = {name: getattr(before, name) for name in ("source", "license", "origin", "consent")}
    with own_folder(folder.parent) as building:
        (building / "shards").mkdir()
        for path in [folder / name for name in ("refused.jsonl", "account.json")] + [*folder.glob("shards/*")]:
            link_or_copy(path, building / path.relative_to(folder))
        _placed_again(folder, domain.name).to_parquet(building / "taken.parquet")
        card, _ = split_rows(about, options, domain, earlier, building)
        if not card.rows:
            why = "each of them contradicts the splits of a version that was made since"
            raise ClipftError(f"staged rows {folder}", why, "Ingest the source again.", code="dataset.nothing_left")
        placed = settle(building, folder.name.rpartition("-")[0])
    if placed == folder:  # it would be tried for ever
        why = "they name shards that nobody holds"
        raise ClipftError(f"staged rows {folder}", why, "Ingest the source again.", code="dataset.staged_before")
    return placed


def _placed_again(folder: Path, domain: str) -> pd.DataFrame:
    """Staged rows with the places that their images have now: those beside images that were erased have moved."""
    rows = pd.read_parquet(folder / "taken.parquet")
    there = {path.name for path in folder.glob("shards/*")}
    left = set(rows.loc[~rows["shard"].isin(there), "sha256"])
    places: dict[str, tuple[str, int, int]] = {}
    for version in reversed(versioning.versions(domain)):
        if not (left := left - places.keys()):
            break
        held = versioning.read_manifest(version)
        held = held[held["sha256"].isin(left)]
        columns = (held[name] for name in ("shard", "offset", "length"))
        places |= dict(zip(held["sha256"], zip(*columns, strict=True), strict=True))
    if left - places.keys():
        why = "images that they share with earlier versions are in no version any more"
        raise ClipftError(f"staged rows {folder}", why, "Ingest the source again.", code="dataset.staged_before")
    at = [
        (shard, offset, length) if shard in there else places[sha256]
        for shard, offset, length, sha256 in zip(*(rows[n] for n in ("shard", "offset", "length", "sha256")), strict=True)
    ]
    return rows.assign(**{name: [place[i] for place in at] for i, name in enumerate(("shard", "offset", "length"))})


def _key_in(folder: Path, earlier: Earlier) -> Callable[[pd.Series], str]:
    """The same for rows of a staging folder, whose images lie there or in the domain's versions."""

    def of_row(row: pd.Series) -> str:
        place, where = shards.Place(row["shard"], int(row["offset"]), int(row["length"])), folder / "shards"
        if not (where / place.shard).exists() and earlier.newest:
            where = versioning.fetch_shards(earlier.newest, {place.shard})
        return key_of(shards.read(where, place), row["caption"], row["label"], row["group"])

    return of_row


def card_of(about: dict[str, str], domain: str, rows: pd.DataFrame, rejected: int, earlier: Earlier) -> DatasetCard:
    """The card of staged rows."""
    of_rows, split_of = rows["label"].to_numpy(object), rows["split"].to_numpy(object)
    labels, counts = Counter(label for label in of_rows if label), Counter(split_of)
    content = manifest.content_of(rows, earlier.decisions.digest if len(earlier.decisions.frame) else "")
    return DatasetCard(
        **about,
        domain=domain,
        rows=len(rows),
        rejected=rejected,
        counts={split: counts[split] for split in splits.SPLITS},
        classes={label: labels[label] for label in sorted(labels)},
        content=content,
        parents=earlier.parents(content),
        major=earlier.major,
        absent=splits.absent(of_rows, split_of),
        reviews=earlier.decisions.reviews(),
    )


def _write_rejected(rows: list[RejectedRow], path: Path) -> None:
    lines = [json.dumps({k: _writable(v) for k, v in row.to_json().items()}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), "utf-8")


def _writable(text: str) -> str:
    """A name as a file may hold it: bytes that are no UTF-8 are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _read_account(folder: Path) -> Account:
    said = SourceAccount.model_validate_json((folder / "account.json").read_bytes())
    return Account(said.seen, Counter(said.passed_over), said.understood, said.warnings)


def read_rejected(folder: Path, name: str = "rejected.jsonl") -> list[RejectedRow]:
    """The rows of a staging folder that were not taken."""
    lines = (folder / name).read_text("utf-8").split("\n")
    return [RejectedRow.model_validate_json(line) for line in lines if line]


def left_out(folder: Path, kept: pd.DataFrame) -> pd.DataFrame:
    """Rows of a staging folder whose image was read and is not among those kept, with the kind of `reason`."""
    if not (folder / "taken.parquet").exists():  # of an earlier release
        return kept.head(0).assign(reason="")
    taken = pd.read_parquet(folder / "taken.parquet")
    reasons = {row.name: row.kind for row in read_rejected(folder)}
    gone = taken[~taken["sha256"].isin(set(kept["sha256"]))].reset_index(drop=True)
    return gone.assign(reason=[reasons.get(shortened(name), "dropped in a review") for name in gone["name"]])


def read_card(folder: Path) -> DatasetCard:
    """The card of a staging folder."""
    path = folder / "datacard.json"
    return DatasetCard.from_json(json.loads(path.read_text()), str(path))

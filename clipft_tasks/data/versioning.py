"""Dataset versions: one folder a domain in the repository of data sets, one tag a version (`industrial/v3`).

<domain>/shards/           DVC: only the shards that the manifest names
<domain>/manifest/         DVC: the manifest, in parts (tables.py)
<domain>/former/           DVC: what any version of the domain ever held and this one does not; with the manifest, the split ledger
<domain>/decisions.parquet DVC: what people decided of rows, where they did
<domain>/datacard.json     git: `DatasetCard`
<domain>/croissant.json    git: the same for other tools
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from ..contracts.dataset import DatasetCard
from ..core.errors import ClipftError
from ..core.files import atomic_write, evict, link_or_copy
from ..core.settings import settings
from . import compaction, croissant, manifest, objects, repository, shards, tables
from .decisions import Decisions
from .ledger import COLUMNS as LEDGER_COLUMNS
from .ledger import Ledger
from .tables import DECISIONS, FORMER, MANIFEST
from .tombstones import Tombstones, drop_rows

if TYPE_CHECKING:
    from dvc.repo import Repo

STAGED_MANIFEST, STAGED_LEDGER = "manifest.parquet", "splits.parquet"  # whole, in a staging folder
TAG = re.compile(r"^(?P<domain>[a-z_][a-z0-9_]*)/v(?P<number>\d+)$")


@dataclass(frozen=True)
class Version:
    """An immutable dataset version; `revision` is its git commit."""

    domain: str
    number: int
    revision: str
    card: DatasetCard

    @property
    def tag(self) -> str:
        return f"{self.domain}/v{self.number}"


class Packed(Protocol):
    """Where a row's image lies: a row of a manifest, as a Series or a named tuple."""

    @property
    def shard(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class Dataset:
    """A version's rows and the folder of its shards, on this machine."""

    version: Version
    frame: pd.DataFrame
    folder: Path

    def split(self, name: str) -> pd.DataFrame:
        return self.frame[self.frame["split"] == name].reset_index(drop=True)

    @property
    def classes(self) -> list[str]:
        return sorted(set(self.frame["label"]) - {""})

    def added(self, frame: pd.DataFrame) -> np.ndarray:
        """Which rows came with this version (n,), bool: captured and judged since its parent. All False without a parent."""
        card = self.version.card
        if not card.captured or not card.parents:
            return np.zeros(len(frame), dtype=bool)
        parent = read_manifest(find(card.parents[-1], self.version.domain))
        return np.asarray(~frame["sha256"].isin(set(parent["sha256"])))

    def image_bytes(self, row: Packed) -> bytes:
        """The bytes of a row's image."""
        return shards.read(self.folder, shards.Place(row.shard, int(row.offset), int(row.length)))


def versions(domain: str) -> list[Version]:
    """The domain's versions, oldest first; empty before the first."""
    return _versions(repository.latest(), domain)


def find(name: str, domain: str) -> Version:
    """The version called `name` (`industrial/v3`), or the newest of `domain` when `name` is empty.

    Raises:
        ClipftError: no such version, with those that exist.
    """
    match = TAG.match(name) if name else None
    if name and not match:
        raise ClipftError(
            f"dataset {name!r}", "it is not <domain>/v<number>", "For example industrial/v1.", code="dataset.invalid_tag"
        )
    found = versions(match["domain"] if match else domain)
    if not name:
        if not found:
            raise ClipftError(
                f"dataset of {domain}",
                "there is no version yet",
                f"Run clipft_dataset, or `clipft run --domain {domain} --source IMAGES`.",
                code="dataset.no_version",
            )
        return found[-1]
    for version in found:
        if version.tag == name:
            return version
    known = ", ".join(v.tag for v in found) or "none"
    raise ClipftError(f"dataset {name}", "there is no such version", f"Known: {known}.", code="dataset.not_found")


def not_comparable(rows_of: str, trained_on: str) -> str:
    """Why a model that was trained on one version cannot be judged on the test rows of another; "" where it can."""
    if rows_of == trained_on or not trained_on:
        return ""
    rows, training = (find(tag, tag.partition("/")[0]) for tag in (rows_of, trained_on))
    if rows.domain != training.domain or rows.card.major == training.card.major:
        return ""
    majors = f"{rows_of} is of major {rows.card.major}, {trained_on} of major {training.card.major}"
    return f"{majors}: a model trained on the latter may have seen these test rows"


def read_ledger(version: Version, rows: pd.DataFrame | None = None) -> Ledger:
    """Every image that its domain's versions up to this one ever held. Raises as `fetch`.

    Args:
        rows: of its manifest, where it was read already.
    """
    rows = read_manifest(version) if rows is None else rows
    there = tables.stored(repository.latest(), version.revision, version.domain, version.tag)
    if (former := there.get(FORMER)) is None and there[MANIFEST].folder:
        return Ledger.empty().joined(rows)
    frame = _rows(version, FORMER)
    if former and former.folder:
        return Ledger(frame).joined(rows)
    if set(LEDGER_COLUMNS) <= set(frame.columns):
        return Ledger(frame)
    before = [v for v in versions(version.domain) if v.number <= version.number]
    return Ledger.upgraded(frame, [read_manifest(v) for v in before])


def read_decisions(version: Version) -> Decisions:
    """What people decided of rows in this version and those before; none where nobody did. Raises as `fetch`."""
    if not version.card.reviews:
        return Decisions.empty()
    return Decisions(_rows(version, DECISIONS).astype("str"))


def read_manifest(version: Version) -> pd.DataFrame:
    """A version's rows, without their images. Raises as `fetch`."""
    return manifest.checked(lambda: _rows(version, MANIFEST), f"of {version.tag}")


def fetch(version: Version) -> Dataset:
    """Bring a version's manifest and shards to this machine's cache, whatever is missing, and check them by their names.

    Where images were erased since the version was looked up, it is fetched without them.
    Raises:
        TransientError: the remote does not answer.
        ClipftError: bytes that are not what their name says.
    """
    from .erased_copies import delete_where_new  # it reads versions itself

    delete_where_new(version.domain)
    try:
        return _fetched(version)
    except ClipftError as error:
        now = find(version.tag, version.domain)
        if error.code != "dataset.incomplete" or now.revision == version.revision:
            raise
        return _fetched(now)


def _fetched(version: Version) -> Dataset:
    frame = read_manifest(version)
    return Dataset(version, frame, fetch_shards(version, set(frame["shard"])))


def fetch_shards(version: Version, needed: set[str]) -> Path:
    """Bring some shards to this machine's cache, of a version or of those before it. Returns the folder. Raises as `fetch`."""
    folder = settings().folder("cache", "shards")
    for name in needed:
        if not shards.NAME.match(name):
            shards.path_of(folder, name)  # refuses it with the reason
    missing = sorted(name for name in needed if not (folder / name).is_file())
    if missing:
        repo = repository.latest()
        before = [other for other in _versions(repo, version.domain) if other.number <= version.number]
        stored = _known_shards(repo, before, set(missing))
        lost = [name for name in missing if name not in stored]
        if lost:
            raise ClipftError(
                f"dataset {version.tag}", f"it holds no shard {lost[0]}", "Ingest it again.", code="dataset.incomplete"
            )
        objects.fetch(repo, [objects.Wanted(stored[n], folder / n, f"dataset {version.tag}: shard {n}") for n in missing])
    if settings().shards_gb:
        for name in needed:
            os.utime(folder / name)
        cached = [path for path in folder.iterdir() if shards.NAME.match(path.name)]
        evict(cached, int(settings().shards_gb * 2**30), lambda path: path.name in needed)
    return folder


class ParentMovedError(Exception):
    """Another run made a version since the rows were staged: they must be split again, on that one."""


def commit(domain: str, staging: Path, card: DatasetCard) -> tuple[Version, bool]:
    """Make a version of a staged manifest and its new shards, or find the one that holds the same content.

    Args:
        staging: folder with `manifest.parquet`, `splits.parquet`, `decisions.parquet` where there are any, and `shards/` (only those
            that are new).
    Returns:
        the version, and whether it is new.
    Raises:
        ParentMovedError: the card's parent is not the newest version any more; nothing was tagged.
        TransientError: the remote or the repository's origin does not answer; nothing was tagged.
        ClipftError: this machine may only read.
    """
    if settings().reads_only:
        raise ClipftError(
            f"a new version of {domain}",
            "this machine reads data over HTTP and cannot push any",
            "Make it on the control plane.",
            code="dataset.read_only",
        )
    with repository.opened() as repo:
        found = _versions(repo, domain)
        newest = found[-1].tag if found else ""
        for version in reversed(found):
            # An older version's content may become the newest again; a try again finds what the killed one made.
            if version.card.content == card.content and (version.tag == newest or version.card.parents == card.parents):
                return version, False
        if card.parents != ([newest] if newest else []):
            raise ParentMovedError(f"{domain}: staged on {card.parents or 'no version'}, the newest is {newest}")
        tag = f"{domain}/v{found[-1].number + 1 if found else 1}"

        home = repo / domain
        staged = manifest.read(staging / STAGED_MANIFEST)
        _refuse_erased(staged, domain, tombstones := Tombstones.of(domain, repo), staging)
        for name in (STAGED_LEDGER, DECISIONS) if tombstones else ():
            drop_rows(staging / name, tombstones.holds)  # made before the erasure, perhaps
        away = {name for name in set(staged["shard"]) if not shards.path_of_name(staging / "shards", name).exists()}
        known = _known_shards(repo, found, away)
        if away - known.keys():  # images were erased since: those beside them lie in other shards now
            raise ParentMovedError(f"{domain}: staged on shards that no version holds any more")
        staged = _compacted(repo, staged, staging, known)
        wanted = sorted(set(staged["shard"]))
        new = {name: shards.path_of(staging / "shards", name) for name in wanted if name not in known}
        for name, path in new.items():
            shards.check(path, name)
        with repository.dvc(repo, "add") as dvc:
            stored = {name: objects.add(dvc, new[name]) if name in new else known[name] for name in wanted}
            folder = objects.add_folder(dvc, stored)
            kept = _store_tables(repo, dvc, domain, staged, staging, found[-1] if found else None)
        with repository.dvc(repo, "push", transient=True) as dvc:
            objects.push(dvc, [*stored.values(), folder, *(file for table in kept.values() for file in table.files)])

        with repository.references():
            home.mkdir(exist_ok=True)
            _empty_working_copy(home)
            (home / ".gitignore").write_text("".join(f"/{name}\n" for name in ("shards", *tables.TABLES)))
            for pointer in home.glob("*.dvc"):
                pointer.unlink()
            atomic_write(home / "shards.dvc", objects.pointer("shards", folder, len(stored)))
            for table in kept.values():
                atomic_write(home / f"{table.path}.dvc", table.pointer)
            named = card.model_copy(update={"version": tag})
            number = int(tag.rpartition("/v")[2])
            (home / croissant.FILE).write_text(croissant.describe(named, number, kept[MANIFEST], stored), "utf-8")
            (home / "datacard.json").write_text(json.dumps(named.to_json(), indent=1, sort_keys=True) + "\n")
            repository.git(repo, "add", "--all", domain, ".dvc", ".dvcignore")
            if repository.git(repo, "status", "--porcelain"):  # a process killed before the tag has committed already
                repository.git(repo, "commit", "--quiet", "--message", f"{tag}: {card.rows} rows from {card.source}")
            repository.git(repo, "tag", "--annotate", tag, "--message", json.dumps(card.counts))
            repository.publish(repo, tag)
        _keep_at_hand(new)
        return _versions(repo, domain)[-1], True


def _compacted(repo: Path, staged: pd.DataFrame, staging: Path, known: dict[str, objects.StoredFile]) -> pd.DataFrame:
    """Staged rows, after images of small shards were packed together where there are many of these."""
    if not (small := compaction.small(staged)):
        return staged
    folder = settings().folder("cache", "shards")
    missing = [objects.Wanted(known[n], folder / n, f"shard {n}") for n in small if n in known and not (folder / n).is_file()]
    objects.fetch(repo, missing)
    return compaction.packed(staged, small, [folder, staging / "shards"], staging / "shards")


def _store_tables(
    repo: Path, dvc: "Repo", domain: str, staged: pd.DataFrame, staging: Path, newest: Version | None
) -> dict[str, tables.StoredTable]:
    """Put a new version's tables into DVC's cache, but for the parts that the newest one has already."""
    ledger = pd.read_parquet(staging / STAGED_LEDGER)
    if not set(LEDGER_COLUMNS) <= set(ledger.columns):
        why = "an earlier release staged them"
        raise ClipftError(f"staged rows {staging}", why, "Ingest the source again.", code="dataset.staged_before")
    there = tables.stored(repo, newest.revision, domain, newest.tag) if newest else {}
    former = Ledger(ledger).beside(staged)
    kept = {}
    for name, rows, identity in ((MANIFEST, staged, ["key"]), (FORMER, former, list(LEDGER_COLUMNS))):
        before = there[name] if name in there and there[name].folder else tables.StoredTable(name, {})
        paths = tables.fetch(repo, domain, before, f"dataset {domain}: {name}")
        if len(rows):
            known = {path.name: tables.read([path]) for path in paths}
            kept[name] = tables.store(dvc, domain, name, rows, identity, before.parts, known)
    if (path := staging / DECISIONS).exists():
        kept[DECISIONS] = tables.StoredTable.one_file(DECISIONS, objects.add(dvc, path))
    return kept


def _refuse_erased(rows: pd.DataFrame, domain: str, tombstones: Tombstones, staging: Path) -> None:
    """Raises ClipftError where staged rows were erased from the domain since they were staged; they are not kept either."""
    if not tombstones:
        return
    count = sum(tombstones.holds(sha256, group) for sha256, group in zip(rows["sha256"], rows["group"], strict=True))
    if count:
        shutil.rmtree(staging, ignore_errors=True)
        why = f"{count} of its rows were erased from {domain} while they were staged"
        raise ClipftError(f"staged rows {staging}", why, "Ingest the source again.", code="dataset.erased_rows")


def _versions(repo: Path, domain: str) -> list[Version]:
    listed = repository.git(repo, "for-each-ref", "--format=%(refname:strip=2) %(*objectname)", f"refs/tags/{domain}/")
    tags = [line.split() for line in listed.splitlines() if TAG.match(line.split()[0])]
    cards = repository.cat_files(repo, [f"{revision}:{domain}/datacard.json" for _, revision in tags])
    found = []
    for (tag, revision), card in zip(tags, cards, strict=True):
        read = DatasetCard.from_json(json.loads(card or b"null"), f"of {tag}")
        found.append(Version(domain, int(tag.rpartition("/v")[2]), revision, read))
    return sorted(found, key=lambda v: v.number)


def _shards(repo: Path, version: Version) -> dict[str, objects.StoredFile]:
    """Where a version's shards are stored, by name."""
    (folder,) = objects.read_pointers(repo, version.revision, [f"{version.domain}/shards"])
    return objects.read_folder(repo, folder, f"dataset {version.tag}: shards") if folder else {}


def _known_shards(repo: Path, found: list[Version], wanted: set[str]) -> dict[str, objects.StoredFile]:
    """Where shards of earlier versions are stored; staged rows may lie in those of any, if others came in between."""
    known: dict[str, objects.StoredFile] = {}
    for version in reversed(found):
        if wanted <= known.keys():
            break
        known |= {name: file for name, file in _shards(repo, version).items() if name in wanted}
    return known


def _keep_at_hand(new: dict[str, Path]) -> None:
    """Put the shards that were just pushed where `fetch` looks first."""
    folder = settings().folder("cache", "shards")
    for name, path in new.items():
        if not (folder / name).exists():
            link_or_copy(path, folder / name)


def _empty_working_copy(home: Path) -> None:
    """Earlier releases kept the newest version's files in the working copy; its shards go where `fetch` looks first."""
    folder = settings().folder("cache", "shards")
    for path in (home / "shards").glob("*.tar"):
        if not (folder / path.name).exists():
            link_or_copy(path, folder / path.name)
    shutil.rmtree(home / "shards", ignore_errors=True)
    for name in (STAGED_MANIFEST, STAGED_LEDGER, DECISIONS):
        (home / name).unlink(missing_ok=True)


def _rows(version: Version, name: str) -> pd.DataFrame:
    """A version's table, from this machine's cache."""
    repo = repository.latest()
    if (table := tables.stored(repo, version.revision, version.domain, version.tag).get(name)) is None:
        raise ClipftError(f"dataset {version.tag}", f"it has no {name}", "Ingest it again.", code="dataset.incomplete")
    return tables.read(tables.fetch(repo, version.domain, table, f"dataset {version.tag}: {name}"))

"""Erasing images from every version of their domains.

What is new (shards without them, tables, cards) is pushed first, under names of its own; then the history of the repository is
replaced, in one step, by one that names only what is new; then what is old is deleted. A reader sees versions as they were, or as
they are, and each of both is whole.
"""

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..contracts.dataset import DatasetCard
from ..contracts.erasure import Erasure, salted
from . import croissant, history, manifest, objects, repository, shards, splits, tables
from .decisions import Decisions
from .groups import same_group
from .objects import StoredFile
from .tables import DECISIONS, MANIFEST, StoredTable
from .tombstones import FILE, Tombstones, written

if TYPE_CHECKING:
    from dvc.repo import Repo

_NONE = pd.DataFrame(columns=list(manifest.COLUMNS)).astype(manifest.COLUMNS)


@dataclass(frozen=True)
class Chosen:
    """Images of a domain to erase, by the SHA-256 of their bytes, and groups that shall not come back."""

    images: frozenset[str]
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class State:
    """What one commit says of a domain: a version, or one that was not tagged when its process was killed."""

    domain: str
    revision: str
    card: DatasetCard
    tables: Mapping[str, StoredTable]
    folder: StoredFile
    shards: Mapping[str, StoredFile]

    @property
    def files(self) -> set[str]:
        """Everything that it names, by MD5."""
        stored = [self.folder, *self.shards.values(), *(file for table in self.tables.values() for file in table.files)]
        return {file.md5 for file in stored}


@dataclass
class Prepared:
    """What takes the place of the old, pushed already. `old`: what the old history named, by MD5."""

    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    old: set[str] = field(default_factory=set)
    rows: dict[str, int] = field(default_factory=dict)


def states(repo: Path, domain: str) -> list[State]:
    """Every state that a domain was ever in, oldest first."""
    found: list[State] = []
    listed = repository.git(
        repo, "rev-list", "--reverse", "--topo-order", repository.head(repo), "--tags", "--", domain
    ).split()
    for revision in listed:
        (card,) = repository.cat_files(repo, [f"{revision}:{domain}/datacard.json"])
        (folder,) = objects.read_pointers(repo, revision, [f"{domain}/shards"])
        there = tables.stored(repo, revision, domain)
        if card is None or folder is None or MANIFEST not in there:
            continue
        of = DatasetCard.from_json(json.loads(card), f"at {revision}")
        packed = objects.read_folder(repo, folder, f"dataset {of.version}: shards")
        found.append(State(domain, revision, of, there, folder, packed))
    return found


def table(repo: Path, file: StoredFile, work: Path) -> pd.DataFrame:
    """A stored table, or a part of one."""
    target = work / "tables" / file.md5
    if not target.exists():
        objects.fetch(repo, [objects.Wanted(file, target, f"table {file.md5}")])
    return pd.read_parquet(target)


def manifest_of(repo: Path, state: State, work: Path) -> pd.DataFrame:
    """The rows of a state."""
    frames = [table(repo, file, work) for file in state.tables[MANIFEST].parts.values()]
    return pd.concat([_NONE, *frames], ignore_index=True)


def prepare(repo: Path, chosen: Mapping[str, Chosen], work: Path) -> Prepared:
    """Make and push what shall take the place of the old. Changes nothing that anybody reads."""
    done = Prepared()
    with repository.dvc(repo, "add") as dvc:
        new = [file for domain, what in chosen.items() for file in _Rewriting(repo, dvc, domain, what.images, work, done).run()]
    if new:
        with repository.dvc(repo, "push", transient=True) as dvc:
            objects.push(dvc, dict.fromkeys(new))
    return done


@dataclass
class _Rewriting:
    """One domain's states without some images."""

    repo: Path
    dvc: "Repo"
    domain: str
    images: frozenset[str]
    work: Path
    done: Prepared
    parts: dict[str, StoredFile | None] = field(default_factory=dict)  # what parts of tables become, by the MD5 of the old
    names: dict[str, str] = field(default_factory=dict)  # of those, likewise

    def run(self) -> list[StoredFile]:
        """Returns the files that are new."""
        every = states(self.repo, self.domain)
        frames = {s.tables[MANIFEST].pointer: manifest_of(self.repo, s, self.work) for s in every}
        moved = self._shards(every, list(frames.values()))
        packed = {new: objects.add(self.dvc, self.work / "shards" / new) for new, _ in moved.values() if new}
        folders = []
        for s in every:
            self.done.old |= s.files
            before = frames[s.tables[MANIFEST].pointer]
            kept = before[~before["sha256"].isin(self.images)]
            lost = len(before) - len(kept)
            if s.card.version:
                self.done.rows[s.card.version] = lost
            after = {name: self._table(name, table, moved) for name, table in s.tables.items()}
            for name, old in s.tables.items():
                if after[name] != old:
                    self._replace(s, f"{old.path}.dvc", after[name].pointer)
                    folders += [file for file in [after[name].folder] if file]
            if lost or set(s.shards) & set(moved):
                # By the list alone, not by its rows: several states may share one, and what one file was becomes one file.
                names = {name: moved[name][0] if name in moved else name for name in sorted(s.shards)}
                listed = {new: packed.get(new, s.shards[name]) for name, new in names.items() if new}
                folder = objects.add_folder(self.dvc, listed)
                folders.append(folder)
                self._replace(s, "shards.dvc", objects.pointer("shards", folder, len(listed)))
                card = _card(s.card, _moved(kept, moved), lost, self._decisions(s))
                self._replace(s, "datacard.json", json.dumps(card.to_json(), indent=1, sort_keys=True) + "\n")
                if card.version:
                    self.done.tags[card.version] = json.dumps(card.counts)
                self._describe(s, card, after[MANIFEST], listed)
        return [*packed.values(), *(file for file in self.parts.values() if file), *folders]

    def _describe(self, state: State, card: DatasetCard, rows: StoredTable, listed: Mapping[str, StoredFile]) -> None:
        """The description for other tools, where a state has one."""
        name = f"{state.revision}:{self.domain}/{croissant.FILE}"
        if repository.cat_files(self.repo, [name]) != [None]:
            number = int(card.version.rpartition("/v")[2])
            self._replace(state, croissant.FILE, croissant.describe(card, number, rows, listed))

    def _decisions(self, state: State) -> str:
        """The digest of a state's decisions without those on erased images; "" for none."""
        if DECISIONS not in state.tables:
            return ""
        (file,) = state.tables[DECISIONS].parts.values()
        rows = table(self.repo, file, self.work)
        rows = rows[~rows["sha256"].isin(self.images)]
        return Decisions(rows).digest if len(rows) else ""

    def _shards(self, every: Sequence[State], frames: Sequence[pd.DataFrame]) -> dict[str, tuple[str, dict[int, int]]]:
        """The shards that hold an erased image, packed without it: the new name, and where images begin, by the old name."""
        gone = set(self.images)  # shards of earlier releases call an image by its row's key
        gone.update(*(frame.loc[frame["sha256"].isin(self.images), "key"] for frame in frames))
        rows = pd.concat([f[["shard", "offset", "length", "sha256"]] for f in frames]).drop_duplicates(["shard", "offset"])
        lengths = {name: group["length"].tolist() for name, group in rows.groupby("shard")}
        holding = set(rows.loc[rows["sha256"].isin(self.images), "shard"])
        folder = self.work / "shards"
        folder.mkdir(parents=True, exist_ok=True)
        moved = {}
        for name, file in sorted({name: file for s in every for name, file in s.shards.items()}.items()):
            if name not in holding and not self._hides(file, lengths.get(name, []), gone):
                continue
            old = self.work / "old" / name
            if not old.exists():
                objects.fetch(self.repo, [objects.Wanted(file, old, f"shard {name}")])
            moved[name] = shards.without(old, gone, folder)
        return moved

    def _hides(self, file: StoredFile, lengths: list[int], gone: set[str]) -> bool:
        """Whether a shard holds an erased image that no manifest names: it was packed, and no split could take it."""
        if objects.size_of(self.repo, file) == shards.packed_bytes(lengths):
            return False
        with objects.opened(self.repo, file) as content:
            return any(shards.stem(member) in gone for member in shards.members(content))

    def _table(self, name: str, old: StoredTable, moved: Mapping[str, tuple[str, dict[int, int]]]) -> StoredTable:
        """A table without the images, and with the places that those beside them have now; the same where nothing changes."""
        parts: dict[str, StoredFile] = {}
        for part, file in old.parts.items():
            if file.md5 not in self.parts:
                self._part(name, old, part, file, moved)
            if new := self.parts[file.md5]:
                parts[self.names[file.md5]] = new
        if parts == old.parts:
            return old
        return StoredTable(old.path, parts, objects.add_folder(self.dvc, parts) if old.folder else None)

    def _part(
        self, name: str, old: StoredTable, part: str, file: StoredFile, moved: Mapping[str, tuple[str, dict[int, int]]]
    ) -> None:
        """What a part of a table becomes: itself, one of fewer rows, or none where no row is left."""
        rows = table(self.repo, file, self.work)
        gone = rows["sha256"].isin(self.images)
        self.parts[file.md5], self.names[file.md5] = file, part
        if not gone.any() and not (name == MANIFEST and rows["shard"].isin(set(moved)).any()):
            return
        rows = rows[~gone].reset_index(drop=True)
        if name == MANIFEST:
            rows = _moved(rows, moved)
        if old.folder and rows.empty:
            self.parts[file.md5] = None
            return
        folder = self.work / "new" / file.md5
        if old.folder:
            path = tables.write(rows, folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / part
            manifest.write(rows, path) if name == MANIFEST else rows.to_parquet(path)
        new = objects.add(self.dvc, path)
        self.parts[file.md5], self.names[file.md5] = new, path.name if old.folder else f"{new.md5}.parquet"

    def _replace(self, state: State, name: str, content: str) -> None:
        was = repository.git(self.repo, "rev-parse", f"{state.revision}:{self.domain}/{name}")
        self.done.files[was] = content.encode()


def _moved(rows: pd.DataFrame, moved: Mapping[str, tuple[str, dict[int, int]]]) -> pd.DataFrame:
    """Rows of a manifest with the places that their images have now."""
    at = [
        (moved[shard][0], moved[shard][1][offset]) if shard in moved else (shard, offset)
        for shard, offset in zip(rows["shard"], rows["offset"].tolist(), strict=True)
    ]
    return rows.assign(shard=[shard for shard, _ in at], offset=[offset for _, offset in at]).reset_index(drop=True)


def _card(card: DatasetCard, rows: pd.DataFrame, lost: int, decisions: str) -> DatasetCard:
    """What a version says of itself without some rows."""
    labels, counts = Counter(label for label in rows["label"] if label), Counter(rows["split"])
    return card.model_copy(
        update={
            "rows": len(rows),
            "counts": {split: counts[split] for split in splits.SPLITS},
            "classes": {label: labels[label] for label in sorted(labels)},
            "content": manifest.content_of(rows, decisions),
            "absent": splits.absent(rows["label"], rows["split"]),
            "erased": card.erased + lost,
        }
    )


def record(
    repo: Path, chosen: Mapping[str, Chosen], done: Prepared, id: str, at: str, by: str, how: list[str], work: Path
) -> list[Erasure]:
    """Build the history without the images, with the record of their erasure as its newest commit. Changes nothing that is read."""
    salts = {domain: Tombstones.of(domain, repo).salt or secrets.token_hex(16) for domain in chosen}

    def erasure(domain: str, revisions: Mapping[str, tuple[str, str]]) -> Erasure:
        digest = partial(salted, salts[domain])
        return Erasure(
            id=id,
            at=at,
            by=by,
            domain=domain,
            chosen=how,
            salt=salts[domain],
            images=sorted(map(digest, chosen[domain].images)),
            groups=sorted({digest(same_group(group)) for group in chosen[domain].groups}),
            rows={tag: n for tag, n in done.rows.items() if tag.startswith(f"{domain}/") and n},
            revisions={tag: pair for tag, pair in revisions.items() if pair[0] != pair[1]} if domain == min(chosen) else {},
        )

    def build(revisions: Mapping[str, tuple[str, str]]) -> tuple[list[Erasure], dict[str, tuple[str, str]]]:
        records = [erasure(domain, revisions) for domain in sorted(chosen)]
        added = {f"{r.domain}/{FILE}": written([*Tombstones.of(r.domain, repo).erasures, r]) for r in records}
        change = history.Change(done.files, done.tags, added, f"erased: {sum(len(r.images) for r in records)} images, {id}")
        return records, history.build(repo, change, work / "history.git")

    revisions = build({})[1]  # tags come before the record, so their commits do not depend on it
    return build(revisions)[0]


def is_recorded(repo: Path, domain: str, id: str) -> bool:
    """Whether an erasure has taken place in the versions."""
    return any(e.id == id for e in Tombstones.of(domain, repo).erasures)

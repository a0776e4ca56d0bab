"""Dataset versions: one folder a domain in the repository of data sets, one tag a version (`industrial/v3`).

<domain>/shards/           DVC: only the shards that the manifest names
<domain>/manifest.parquet  DVC
<domain>/splits.parquet    DVC: the split of every image that any version of the domain ever held
<domain>/datacard.json     git: `DatasetCard`
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from ..contracts.dataset import DatasetCard
from ..core.errors import ClipftError
from ..core.files import evict
from ..core.settings import settings
from . import manifest, repository, shards

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
    with repository.opened() as repo:
        return _versions(repo, domain)


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
                "Run the dataset DAG or `clipft ingest`.",
                code="dataset.no_version",
            )
        return found[-1]
    for version in found:
        if version.tag == name:
            return version
    known = ", ".join(v.tag for v in found) or "none"
    raise ClipftError(f"dataset {name}", "there is no such version", f"Known: {known}.", code="dataset.not_found")


def splits_ledger(domain: str) -> dict[str, str]:
    """sha256 of an image -> its split, for every image any version of the domain ever held."""
    with repository.opened() as repo:
        found = _versions(repo, domain)
        if not found:
            return {}
        frame = pd.read_parquet(_file(repo, found[-1], "splits.parquet"))
    return dict(zip(frame["sha256"], frame["split"], strict=True))


def read_manifest(version: Version) -> pd.DataFrame:
    """A version's rows, without their images. Raises as `fetch`."""
    with repository.opened() as repo:
        return manifest.read(_file(repo, version, "manifest.parquet"))


def fetch(version: Version) -> Dataset:
    """Bring a version's manifest and shards to this machine's cache, whatever is missing, and check them by their names.

    Raises:
        Transient: the remote does not answer.
        ClipftError: bytes that are not what their name says.
    """
    folder = settings().folder("cache", "shards")
    with repository.opened() as repo:
        frame = manifest.read(_file(repo, version, "manifest.parquet"))
        needed = set(frame["shard"])
        for name in sorted(needed):
            if not shards.NAME.match(name):
                shards.path_of(folder, name)  # refuses it with the reason
            if not (folder / name).is_file():
                _file(repo, version, f"shards/{name}", folder / name)
        if settings().shards_gb:
            for name in needed:
                os.utime(folder / name)
            cached = [path for path in folder.iterdir() if shards.NAME.match(path.name)]
            evict(cached, int(settings().shards_gb * 2**30), lambda path: path.name in needed)
    return Dataset(version, frame, folder)


def commit(domain: str, staging: Path, card: DatasetCard) -> tuple[Version, bool]:
    """Make a version of a staged manifest and its new shards, or find the one that holds the same content.

    Args:
        staging: folder with `manifest.parquet`, `splits.parquet` and `shards/` (only those that are new).
    Returns:
        the version, and whether it is new.
    Raises:
        Transient: the remote or the repository's origin does not answer; nothing was tagged.
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
        for version in reversed(found):
            if version.card.content == card.content:
                return version, False
        number = found[-1].number + 1 if found else 1
        tag = f"{domain}/v{number}"

        home = repo / domain
        kept = home / "shards"
        kept.mkdir(parents=True, exist_ok=True)
        if found and (home / "shards.dvc").exists():
            with repository.dvc(repo, "pull", transient=True) as dvc:
                dvc.pull([str(home / "shards.dvc"), str(home / "splits.parquet.dvc")], force=True)
        frame = manifest.read(staging / "manifest.parquet")
        wanted = set(frame["shard"])
        for path in kept.iterdir():
            if path.name not in wanted:
                path.unlink()
        for name in sorted(wanted - {p.name for p in kept.iterdir()}):
            shutil.copyfile(shards.path_of(staging / "shards", name), kept / name)
        for name in ("manifest.parquet", "splits.parquet"):
            (home / name).unlink(missing_ok=True)  # a hard link into DVC's cache is never written through
            shutil.copyfile(staging / name, home / name)
        named = card.model_copy(update={"version": tag})
        (home / "datacard.json").write_text(json.dumps(named.to_json(), indent=1, sort_keys=True) + "\n")

        tracked = [str(home / name) for name in ("shards", "manifest.parquet", "splits.parquet")]
        with repository.dvc(repo, "add") as dvc:
            dvc.add(tracked)
        with repository.dvc(repo, "push", transient=True) as dvc:
            dvc.push([f"{t}.dvc" for t in tracked])
        repository.git(repo, "add", "--all", domain, ".dvc", ".dvcignore")
        if repository.git(repo, "status", "--porcelain"):  # a process killed before the tag has committed already
            repository.git(repo, "commit", "--quiet", "--message", f"{tag}: {card.rows} rows from {card.source}")
        repository.git(repo, "tag", "--annotate", tag, "--message", json.dumps(card.counts))
        repository.publish(repo, tag)
        return _versions(repo, domain)[-1], True


def _versions(repo: Path, domain: str) -> list[Version]:
    listed = repository.git(repo, "for-each-ref", "--format=%(refname:strip=2) %(*objectname)", f"refs/tags/{domain}/")
    found = []
    for line in listed.splitlines():
        tag, revision = line.split()
        match = TAG.match(tag)
        if match:
            card = json.loads(repository.git(repo, "show", f"{revision}:{domain}/datacard.json"))
            found.append(Version(domain, int(match["number"]), revision, DatasetCard.from_json(card, f"of {tag}")))
    return sorted(found, key=lambda v: v.number)


def _file(repo: Path, version: Version, name: str, target: Path | None = None) -> Path:
    return repository.fetch_file(repo, version.tag, version.revision, name, target)

"""Which images a person means: by row, group, request or image file, in every version of every domain."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ...contracts.drift import Capture, answer_hash
from ...core.errors import ClipftError
from ...core.settings import settings
from ...data import erasing, manifest, pseudonyms, splits
from ...data.metadata import stripped
from ...data.readers.captures import CAPTURED
from ...domains import domain_names, get_domain
from . import captured


@dataclass(frozen=True)
class Choice:
    """What a person asked to erase.

    Attributes:
        rows: keys, or what the sources call them. groups: as manifests write them, or as the source did (a patient's number).
        requests: answer ids of the server. images: files.
        domain: only of this one; "" for all.
    """

    rows: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    requests: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    domain: str = ""

    @property
    def how(self) -> list[str]:
        kinds = {"row": self.rows, "group": self.groups, "request": self.requests, "image": self.images}
        return [kind for kind, given in kinds.items() if given]


@dataclass
class Found:
    """What was meant: by domain every row of every version, those that go and the others; and the captures.

    Attributes:
        rows: of all versions, with `version` (tag) and `erased`.
        captures: that go.
    """

    rows: dict[str, pd.DataFrame] = field(default_factory=dict)
    groups: dict[str, frozenset[str]] = field(default_factory=dict)
    captures: list[Capture] = field(default_factory=list)

    @property
    def chosen(self) -> dict[str, erasing.Chosen]:
        """By domain. A capture that no version holds is known again too, should it come by another way."""
        out = {}
        for domain, frame in self.rows.items():
            images = set(frame.loc[frame["erased"], "sha256"])
            images |= {digest for c in self.captures if c.domain == domain for digest in _digests_of(c)}
            if images:
                out[domain] = erasing.Chosen(frozenset(images), self.groups.get(domain, frozenset()))
        return out


def find(repo: Path, choice: Choice, domains: Iterable[str], work: Path) -> Found:
    """Look for it in every version, and among the captures.

    Raises: ClipftError where one of the things named is nowhere, or in several domains; or where a file cannot be read.
    """
    if "" in (*choice.rows, *choice.groups, *choice.requests):
        raise ClipftError("what to erase", "an empty name would mean every row without one", "Name it.", code="erase.not_found")
    digests = {digest for path in choice.images for digest in _digests(path)}
    groups = set(choice.groups) | {p for group in choice.groups for p in _pseudonyms(group)}
    hashes = {answer_hash(request) for request in choice.requests}
    of_requests = tuple(f"{CAPTURED}{request}-" for request in hashes) or ("\0",)
    found, met = Found(), _Met()
    for domain in domains:
        if choice.domain not in ("", domain):
            continue
        every = _rows(repo, domain, work)
        here = every["sha256"].isin(digests) | every["name"].str.startswith(of_requests)
        for column, asked in (("key", choice.rows), ("name", choice.rows), ("group", groups)):
            here |= every[column].isin(asked)
            met.add(domain, every.loc[every[column].isin(asked), column])
        met.add(domain, every.loc[here, "sha256"])
        met.add(domain, [name.removeprefix(CAPTURED).rpartition("-")[0] for name in every.loc[here, "name"]])
        found.rows[domain] = every.assign(erased=every["sha256"].isin(set(every.loc[here, "sha256"])))
        found.groups[domain] = frozenset(groups & set(every["group"]))
    kept = {(c.domain, c.id): c for c in (*captured.of_server(found.rows), *captured.of_home())}
    for c in kept.values():
        if choice.domain not in ("", c.domain):
            continue
        frame = found.rows.get(c.domain, _none())
        gone = frame[frame["erased"]]
        if c.sha256 in digests | set(gone["sha256"]) or c.request in hashes or f"{CAPTURED}{c.id}" in set(gone["name"]):
            found.captures.append(c)
            found.rows.setdefault(c.domain, _none())
            met.add(c.domain, [c.sha256, c.request])
    for request in choice.requests:
        met.add("", [answer_hash(request)] if captured.is_remembered(request) else [])
    asked_for = {
        **{f"row {row}": {row} for row in choice.rows},
        **{f"group {group}": {group, *_pseudonyms(group)} for group in choice.groups},
        **{f"request {request}": {answer_hash(request)} for request in choice.requests},
        **{f"image {path}": set(_digests(path)) for path in choice.images},
    }
    for what, names in asked_for.items():
        met.check(what, names, one_domain=what.startswith(("row", "group")))
    return found


class _Met:
    """Which names were met in which domains."""

    def __init__(self) -> None:
        self.domains: dict[str, set[str]] = {}

    def add(self, domain: str, names: Iterable[str]) -> None:
        for name in names:
            self.domains.setdefault(name, set()).add(domain)

    def check(self, what: str, names: Iterable[str], one_domain: bool) -> None:
        """Raises ClipftError for what is nowhere, since a name that was mistyped must not look erased; or in several domains."""
        there = set().union(*(self.domains.get(name, set()) for name in names))
        if not there:
            fix = "Name rows by key or as the manifest names them, groups as the manifest or the source writes them."
            raise ClipftError(what, "no version, capture or answer holds it", fix, code="erase.not_found")
        if one_domain and len(there) > 1:
            why = f"{' and '.join(sorted(there))} each have one, which may be different things"
            raise ClipftError(what, why, "Say which with --domain, one after the other.", code="erase.several_domains")


def _none() -> pd.DataFrame:
    return pd.DataFrame(columns=list(manifest.COLUMNS)).astype(manifest.COLUMNS).assign(version="", erased=False)


def alike(found: Found) -> list[str]:
    """Near-duplicates of what is erased that stay: for a person to decide."""
    out = []
    for domain, frame in found.rows.items():
        once = frame.drop_duplicates("sha256")
        gone, left = once[once["erased"]], once[~once["erased"] & (once["phash"] != "")]
        gone = gone[gone["phash"] != ""]
        bits = get_domain(domain).near_duplicate_bits if domain in domain_names() else 12
        near = splits.nearest(left["phash"].tolist(), gone["phash"].tolist(), bits)
        out += [
            f"{name} (key {key}, {apart} of 256 bits differ from {gone['name'].iloc[which]})"
            for name, key, (which, apart) in zip(left["name"], left["key"], near, strict=True)
            if which >= 0
        ]
    return out


def _rows(repo: Path, domain: str, work: Path) -> pd.DataFrame:
    frames = [_none().drop(columns="erased")]
    for state in erasing.states(repo, domain):
        frames.append(erasing.manifest_of(repo, state, work).assign(version=state.card.version))
    return pd.concat(frames, ignore_index=True)


def _digests(path: Path) -> tuple[str, ...]:
    """The file's own, as captures have it, and without what stands beside the pixels, as versions have it."""
    try:
        data = path.read_bytes()
        return hashlib.sha256(data).hexdigest(), hashlib.sha256(stripped(data)).hexdigest()
    except Exception as error:  # whatever reading or decoding it raises
        raise ClipftError(
            f"image {path}", f"it cannot be read ({error})", "Name an image file.", code="erase.unreadable_image"
        ) from error


def _pseudonyms(group: str) -> Iterator[str]:
    """What stands for a patient's number in DICOM data of this installation, with or without who issued it."""
    if pseudonyms.key_path().exists():
        yield from (pseudonyms.pseudonym(said) for said in (f"\n{group}", group, group.replace("/", "\n", 1)))


def _digests_of(capture: Capture) -> set[str]:
    """As the capture has it, and as a version would."""
    path = settings().root / "captures" / capture.domain / f"{capture.id}.image"
    return {capture.sha256, *(_digests(path) if path.exists() else ())}

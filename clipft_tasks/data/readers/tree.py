"""Trees of folders: which files there are, what is passed over, and what each level of folders means."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ..account import Account
from ..splits import SPLITS
from .links import Root
from .text import split_of

Level = Literal["split", "class", "group", "-"]
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
# Folders that hold images and say nothing of them.
CONTAINERS = re.compile(
    r"(jpe?g|png)?_?(images?|imgs?|data|dataset|photos?|pics?|files?|raw|frames?|all|jpe?g|png|tiff?)s?\d*", re.I
)
NO_CLASS = re.compile(
    CONTAINERS.pattern
    + r"|(masks?|labels?|annotations?|seg(mentations?|maps?)?|gt|ground[-_ ]?truth|thumb(nail)?s?|bbox(es)?)",
    re.I,
)
# People, parts and examinations, numbered: what rows have in common without being alike.
UNIT = re.compile(
    r"(patients?|pat|pt|p|subjects?|subj?|sub|s|cases?|participants?|persons?|donors?|animals?|mouse|specimens?|samples?|parts?|"
    r"modules?|lots?|batch|wafers?|cells?|stud(y|ies)|series|exams?|visits?|scans?|sessions?|ses|id|"
    r"patienten?|pazient[ei]|pacientes?|patiënt|pasient|pacjent|пациент|患者|病人|probe|bauteil|charge|échantillon|muestra|campione)"
    r"[-_ .]?\d+.*",
    re.I,
)
MOST = 0.8  # share of a level's names that must look alike before it is read so
FEW = 10  # images: folders below classes with fewer on average are patients or parts rather than classes of classes


def files(root: Root, account: Account) -> list[Path]:
    """Files below `root`, relative to it, sorted; what systems leave there is passed over and counted.

    Linked folders are followed where links of the source may lead, each folder once: what is read already, and a link that leads
    back, is passed over.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting = [root.path]
    for start in waiting:  # grows as links are found; they come after what is no link
        for parent, folders, names in os.walk(start):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                account.pass_over("linked folders that are read already")
                continue
            seen.add(real)
            for name in sorted(folders):
                if name == "__MACOSX" or name.startswith("."):
                    folders.remove(name)
                    account.pass_over("__MACOSX folders" if name == "__MACOSX" else "hidden folders")
                elif Path(parent, name).is_symlink():
                    folders.remove(name)
                    if root.holds(Path(parent, name).resolve()):
                        waiting.append(Path(parent, name))
                    else:
                        account.pass_over("linked folders")
            for name in names:
                if kind := system_file(name):
                    account.pass_over(kind)
                else:
                    found.append(Path(parent, name).relative_to(root.path))
    if linked := account.passed_over["linked folders"]:
        account.warn(
            f"{linked} folders are links that lead out of the source and were not followed. Name that place in data.links_root."
        )
    return sorted(found)


def system_file(path: str) -> str:
    """The kind of file that an operating system leaves beside others, as an account names it; "" for any other."""
    *folders, name = path.split("/")
    if "__MACOSX" in folders or name.startswith("._"):
        return "files of macOS (._*, __MACOSX)"
    if name.startswith(".") or any(f.startswith(".") for f in folders if f not in ("", ".", "..")):
        return "hidden files"
    return "system files" if name.lower() in SYSTEM_FILES else ""


@dataclass(frozen=True)
class Meaning:
    """What a path's folders say of its file."""

    split: str = ""
    label: str = ""
    group: str = ""


@dataclass(frozen=True)
class Levels:
    """What each level of folders means, from the top."""

    kinds: tuple[Level, ...]

    def of(self, path: Path) -> Meaning:
        named: dict[str, list[str]] = defaultdict(list)
        for kind, name in zip(self.kinds, path.parent.parts, strict=False):
            named[kind].append(name)
        split = split_of(named["split"][0]) if named["split"] else ""
        return Meaning(split, "/".join(named["class"]), named["group"][0] if named["group"] else "")


def levels_of(paths: Sequence[Path], asked: str, captioned: bool, account: Account) -> Levels:
    """What the levels of folders mean: as asked for (`split/class/group`), else as plain from their names.

    A level where two splits are named is the split. Of the others, numbered patients and parts are groups, and so is what lies
    below classes with few images each; levels that only hold images, and numbered parts of a captioned set, mean nothing.

    Args:
        captioned: every image has a caption of its own.
    """
    names = [
        Counter(p.parent.parts[i] for p in paths if len(p.parts) > i + 1)
        for i in range(max(map(len, (p.parts for p in paths)), default=1) - 1)
    ]
    if asked:
        kinds = cast("list[Level]", asked.split("/"))[: len(names)]
        kinds += ["-"] * (len(names) - len(kinds))
    else:
        kinds = _plain(paths, names, captioned)
        if "split" in kinds:
            strange = sum(split_of(name) not in SPLITS for name in names[kinds.index("split")])
            if strange:
                account.warn(f"{strange} folders beside train, val or test name no split; their images are dealt to all three.")
    for level, (kind, found) in enumerate(zip(kinds, names, strict=True), 1):
        if kind not in ("split", "-") and not asked:
            if splits := sum(split_of(name) in SPLITS for name in found):
                account.warn(
                    f"{splits} of {len(found)} folders of level {level} are called like a split, and the level was read as {kind}."
                )
            if kind == "class" and len(found) > 1 and (odd := sum(bool(NO_CLASS.fullmatch(name)) for name in found)):
                account.warn(
                    f"{odd} of {len(found)} classes of level {level} are called like folders of images, masks or annotations."
                )
            if kind == "class" and len(found) > 2 and _numbered(found) >= MOST:
                account.warn(
                    f"The classes of level {level} are called alike but for a number. If they are patients or parts, say data.levels."
                )
    said = [f"level {i} {'nothing' if kind == '-' else kind} ({len(names[i - 1])} names)" for i, kind in enumerate(kinds, 1)]
    account.understand(f"Folders: {', '.join(said)}." if said else "Folders: none below the source.")
    if not asked and len(kinds) > 1 and "group" in kinds and "class" in kinds:
        account.understand("Say data.levels where this is meant in another way.")
    if not asked and kinds.count("class") > 1:
        account.warn(
            "Folders within folders were read as one class each (outer/inner). Say data.levels if inner ones are groups."
        )
    return Levels(tuple(kinds))


def _plain(paths: Sequence[Path], names: Sequence[Counter[str]], captioned: bool) -> list[Level]:
    kinds: list[Level] = []
    for level, found in enumerate(names):
        splits = {split_of(name) for name in found} & set(SPLITS)
        if "split" not in kinds and (len(splits) > 1 or (splits and all(split_of(name) in SPLITS for name in found))):
            kinds.append("split")
        elif len(found) == 1 and CONTAINERS.fullmatch(next(iter(found))):
            kinds.append("-")
        elif captioned and _share(found, str.isdecimal) >= MOST:
            kinds.append("-")  # parts of a set, as img2dataset numbers them
        elif "group" in kinds:
            repeated = "class" not in kinds and _repeats(paths, level)
            kinds.append("class" if repeated else "-")
        elif (len(found) > 1 and _share(found, lambda name: bool(UNIT.fullmatch(name))) >= MOST) or (
            "class" in kinds and (_share(found, _has_digit) >= MOST or found.total() < FEW * _leaves(paths, level))
        ):
            kinds.append("group")
        else:
            kinds.append("class")
    return kinds


def _numbered(names: Counter[str]) -> float:
    """The share of names that are one word with a number."""
    stems = Counter(found[1].strip("-_. ").lower() for name in names if (found := re.fullmatch(r"(.*?\D)\d+", name)))
    return max(stems.values(), default=0) / len(names)


def _has_digit(name: str) -> bool:
    return any(letter.isdigit() for letter in name)


def _share(names: Iterable[str], test: Callable[[str], bool]) -> float:
    found = [test(name) for name in names]
    return sum(found) / len(found) if found else 0.0


def _leaves(paths: Sequence[Path], level: int) -> int:
    return len({p.parts[: level + 1] for p in paths if len(p.parts) > level + 1})


def _repeats(paths: Sequence[Path], level: int) -> bool:
    """Whether the names of a level come again below other folders, as classes within patients do."""
    above = defaultdict(set)
    for p in paths:
        if len(p.parts) > level + 1:
            above[p.parts[level]].add(p.parts[:level])
    return any(len(folders) > 1 for folders in above.values())

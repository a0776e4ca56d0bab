"""Trees of folders: which files there are, what is passed over, and what each level of folders means."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ..account import Account
from ..splits import SPLITS
from .links import Root
from .text import split_in, split_of

Level = Literal["split", "class", "group", "-"]
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
# Folders that hold images and say nothing of them.
CONTAINERS = re.compile(
    r"(jpe?g|png)?_?(images?|imgs?|data|dataset|photos?|pics?|files?|raw|frames?|all|jpe?g|png|tiff?)s?\d*", re.I
)
NO_CLASS = re.compile(
    CONTAINERS.pattern
    + r"|(unlabell?ed|te?mp|backup|trash|todo|(new folder|neuer ordner|nouveau dossier|nueva carpeta).*|.+ - (copy|kopie|copie|copia).*)"
    r"|(masks?|labels?|annotations?|seg(mentations?|maps?)?|gt|ground[-_ ]?truth|thumb(nail)?s?|bbox(es)?)",
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
# What images were taken by or on, numbered or dated, when classes lie below it.
TAKEN_BY = re.compile(
    r"(cam(era)?|kamera|folds?|lines?|linie|stations?|sites?|days?|tag|weeks?|woche|runs?|shifts?|schicht|machines?|maschine|device|"
    r"scanner|l|k)[-_ .]?[a-z]?\d+.*|\d{2,4}[-_.]?\d{2}[-_.]?\d{2,4}.*",
    re.I,
)
ENOUGH = 5  # groups, for three splits
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
        split = split_in(named["split"][0]) if named["split"] else ""
        label, group = (unicodedata.normalize("NFC", name) for name in ("/".join(named["class"]), "".join(named["group"][:1])))
        return Meaning(split, label, group)


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
            strange = sum(split_in(name) not in SPLITS for name in names[kinds.index("split")])
            if strange:
                account.warn(f"{strange} folders beside train, val or test name no split; their images are refused.")
    for level, (kind, found) in enumerate(zip(kinds, names, strict=True), 1):
        if kind not in ("split", "-") and not asked:
            if splits := sum(split_in(name) in SPLITS for name in found):
                account.warn(
                    f"{splits} of {len(found)} folders of level {level} are called like a split, and the level was read as {kind}."
                )
            if kind == "class" and len(found) > 1 and (odd := sum(bool(NO_CLASS.fullmatch(name)) for name in found)):
                account.warn(
                    f"{odd} of {len(found)} classes of level {level} are called like folders of images, masks, annotations or copies."
                )
            if kind == "class" and len(found) > 2 and _numbered(found) >= MOST:
                account.warn(
                    f"The classes of level {level} are called alike but for a number. If they are patients or parts, say data.levels."
                )
    said = [f"level {i} {'nothing' if kind == '-' else kind} ({len(names[i - 1])} names)" for i, kind in enumerate(kinds, 1)]
    account.understand(f"Folders: {', '.join(said)}." if said else "Folders: none below the source.")
    if not asked and len(kinds) > 1 and "group" in kinds and "class" in kinds:
        account.understand("Say data.levels where this is meant in another way.")
    if not asked and _classes_below(paths, names) is not None:
        account.warn(
            "Folders that repeat below cameras, dates or the like were read as classes. Say data.levels if they are none."
        )
    elif not asked and "class" in kinds:
        inner = [level for level, kind in enumerate(kinds) if kind == "group" and level > kinds.index("class")]
        if any(_repeats(paths, level) and _share(names[level], _has_digit) < MOST for level in inner):
            account.warn(
                "The folders that were read as groups repeat below each class. Say data.levels if they are the classes."
            )
    if not asked and kinds.count("class") > 1:
        account.warn(
            "Folders within folders were read as one class each (outer/inner). Say data.levels if inner ones are groups."
        )
    return Levels(tuple(kinds))


def _plain(paths: Sequence[Path], names: Sequence[Counter[str]], captioned: bool) -> list[Level]:
    kinds: list[Level] = []
    below = _classes_below(paths, names)
    grouping = _grouping(names, below) if below else None
    for level, found in enumerate(names):
        splits = {split_of(name) for name in found} & set(SPLITS)
        words = {split_in(name) for name in found}
        also_named = (
            captioned or level + 1 < len(names) or len({re.sub(r"\W|_", "", _without_split(name)) for name in found}) == 1
        )
        if ("split" not in kinds and (len(splits) > 1 or (splits and all(split_of(name) in SPLITS for name in found)))) or (
            "split" not in kinds and len(words) > 1 and words <= set(SPLITS) and also_named
        ):
            kinds.append("split")
        elif below is not None and level <= below:
            kinds.append("class" if level == below else "group" if level == grouping else "-")
        elif (len(found) == 1 and _is_wrapper(names, level)) or (len(found) == 1 and CONTAINERS.fullmatch(next(iter(found)))):
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


def _classes_below(paths: Sequence[Path], names: Sequence[Counter[str]]) -> int | None:
    """The level of classes that repeat below cameras, dates, lots and the like alone; None where there is none."""
    above: list[int] = []
    for level, found in enumerate(names):
        if _is_split(found) or (len(found) == 1 and CONTAINERS.fullmatch(next(iter(found)))):
            continue
        if len(found) > 1 and above and _share(found, _has_digit) <= 1 - MOST and _repeats(paths, level):
            return level
        if _share(found, lambda name: bool(TAKEN_BY.fullmatch(name) or UNIT.fullmatch(name))) < MOST:
            return None
        above.append(level)
    return None


def _grouping(names: Sequence[Counter[str]], below: int) -> int:
    """Which level above classes groups rows: patients and parts, else the first with enough names, else that with most."""
    levels = [i for i in range(below) if not _is_split(names[i])]
    units = [i for i in levels if _share(names[i], lambda name: bool(UNIT.fullmatch(name))) >= MOST]
    many = [i for i in levels if len(names[i]) >= ENOUGH]
    return (units or many or [max(levels, key=lambda i: len(names[i]))])[0]


def _is_split(found: Counter[str]) -> bool:
    return all(split_in(name) in SPLITS for name in found)


def _is_wrapper(names: Sequence[Counter[str]], level: int) -> bool:
    """Whether splits lie below a folder, and classes below these: then it only says what all of them are about."""
    splits = [i for i in range(level + 1, len(names)) if {split_of(name) for name in names[i]} & set(SPLITS)]
    return bool(splits) and any(len(found) > 1 and _share(found, _has_digit) < MOST for found in names[splits[0] + 1 :])


def _without_split(name: str) -> str:
    words = re.split(r"[-_. ]+", name.strip())
    return "".join(word for word in words if split_of(word) not in SPLITS)


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

"""What a reader tells of its source beside the rows: nothing that it finds there goes unsaid."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath

from ..contracts.dataset import RejectedRow, SourceAccount
from ..core.console import say
from ..domains import Domain
from .groups import same_group
from .odd_texts import sentences

NO_ENDING = "files without a known ending"
FEW_PER_CLASS = 3  # rows: classes from folders with fewer on average are more likely patients, parts or dates
MANY_CLASSES = 10
MISSING = {"nan", "na", "n/a", "none", "null", "nil", "-", "?", "<na>"}  # "unknown" may be a class
NUMBER = re.compile(
    r"\d{6}|\d{2,4}[-.]\d{1,2}[-.]\d{1,4}|\^"
)  # in a class name: a date, a number of a register, a name of DICOM


@dataclass
class Account:
    """Filled while a source is opened and read. It reaches git with the dataset's card, so it names no file and no folder.

    Attributes:
        seen: files, table rows or shard members that were looked at.
        passed_over: what is no row, by kind ("hidden files").
        understood: how labels, groups and splits were found, a sentence each.
        warnings: what a person should look at, likewise.
    """

    seen: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    understood: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def pass_over(self, kind: str, count: int = 1) -> None:
        if count:
            self.passed_over[kind] += count

    def understand(self, sentence: str) -> None:
        if sentence not in self.understood:
            self.understood.append(sentence)

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def ending(path: PurePath) -> str:
    """How a file's kind is named in an account: by its ending, unless that could be anything."""
    suffix = path.suffix.lower()
    return f"{suffix} files" if re.fullmatch(r"\.[a-z][a-z0-9]{0,5}", suffix) else NO_ENDING


def finish(
    account: Account,
    domain: Domain,
    labels: Iterable[str],
    groups: Iterable[str],
    splits: Iterable[str],
    rejected: Iterable[RejectedRow],
    captions: Iterable[str] = (),
) -> SourceAccount:
    """The account with what came of it.

    Args:
        labels, groups, splits, captions: of the rows that were taken, in one order; the splits that the source gave, "" for none.
    """
    classes = Counter(label for label in labels if label)
    members = list(groups)
    given = Counter(split or "" for split in splits)
    named = {group for group in members if group}
    taken = len(members)
    understood = [*account.understood, f"{len(classes)} classes, {len(named)} groups in {taken} rows."]
    if dealt := given.pop("", 0):
        understood.append(f"The source names no split for {dealt} of {taken} rows.")
    warnings = [*account.warnings]
    if taken and domain.group_unit and not named:
        warnings.append(
            f"No row has a group, so images of one {domain.group_unit} may lie in train and test. "
            "Name the column (data.group_column) or the level of folders (data.levels) that tells them apart."
        )
    if spelled := len(named) - len({same_group(name) for name in named}):
        warnings.append(
            f"{spelled} of {len(named)} groups are called like another one but for case, spaces, zeros or how letters are composed. "
            "They share a split."
        )
    if named and not all(members):
        warnings.append(f"{members.count('')} of {taken} rows have no group.")
    if len(classes) == 1 and taken > 1 and classes.total() == taken:
        warnings.append("All rows are of one class. Is that a class at all?")
    if len(classes) > MANY_CLASSES and classes.total() < FEW_PER_CLASS * len(classes):
        warnings.append(
            f"{len(classes)} classes for {classes.total()} rows: are these classes, or rather patients, parts or file names?"
        )
    if odd := sum(bool(NUMBER.search(name)) for name in classes):
        warnings.append(f"{odd} of {len(classes)} classes read like dates, numbers or names of persons.")
    if alike := len(classes) - len({_plain(name) for name in classes}):
        warnings.append(
            f"{alike} of {len(classes)} classes are called like another one but for case, spaces or how letters are composed."
        )
    if empty := sum(count for name, count in classes.items() if _plain(name) in MISSING):
        warnings.append(f"{empty} rows have a class that reads like a missing value (nan, none, n/a).")
    warnings += sentences(captions, classes)
    if lost := account.passed_over["groups that read like a missing value (nan, none, n/a)"]:
        warnings.append(f"{lost} rows have a group that reads like a missing value (nan, none, n/a), and count as in none.")
    return SourceAccount(
        seen=account.seen,
        taken=taken,
        refused=dict(Counter(row.kind for row in rejected).most_common()),
        passed_over=dict(account.passed_over.most_common()),
        understood=understood,
        warnings=warnings,
    )


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def tell(account: SourceAccount) -> None:
    """Say what was found in the source: counts, how it was understood, and what a person should look at."""
    if account.seen:
        say(f"Looked at {account.seen} entries of the source.")
    if account.refused:
        say(f"Refused: {', '.join(f'{n} {kind}' for kind, n in account.refused.items())}.")
    if account.passed_over:
        say(f"Passed over: {', '.join(f'{n} {kind}' for kind, n in account.passed_over.items())}.")
    for sentence in account.understood:
        say(sentence)
    for sentence in account.warnings:
        say(f"Look at this: {sentence}")

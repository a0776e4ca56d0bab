"""Captions and classes that were damaged before they came, or that are no text for people: for a person to look at."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

MARKUP = re.compile(r"&(#\d+|#x[0-9a-f]+|[a-z]{2,8});|</?[a-z]{1,10}( [^<>]*)?/?>", re.I)
NOT_ASCII = re.compile(r"[^\x00-\x7f]")
SEVERAL = re.compile(r"\s*[|;,]\s*")


def sentences(captions: Iterable[str], classes: Counter[str]) -> Iterator[str]:
    """What is odd about the texts of rows, a sentence each.

    Args:
        captions: of each row. classes: rows by label.
    """
    counts = Counter(captions)
    found: Counter[str] = Counter()
    for text, rows in counts.items():
        found["lost"] += rows * ("\ufffd" in text)
        found["misread"] += rows * _is_misread(text)
        found["markup"] += rows * bool(MARKUP.search(text))
    if rows := found["lost"]:
        yield f"{rows} captions hold \ufffd in place of letters: they were decoded wrongly before. Take them from where they came from."
    if rows := found["misread"]:
        yield f"{rows} captions read like UTF-8 that was taken for another encoding (\u00c3\u00bc for \u00fc). Save their source as UTF-8."
    if rows := found["markup"]:
        yield f"{rows} captions hold HTML (&amp;, <p>), which is learned as it stands."
    if classes and all(re.fullmatch(r"-?\d+([.,]\d+)?", name) for name in classes):
        yield f"All {len(classes)} classes are numbers, and captions say them as such. Give classes their names."
    parts = Counter(part for name in classes for part in set(SEVERAL.split(name)) if part)
    several = [
        name
        for name in classes
        if len(split := SEVERAL.split(name)) > 1 and ("|" in name or ";" in name or all(parts[part] > 1 for part in split))
    ]
    if several:
        yield (
            f"{len(several)} of {len(classes)} classes read like several in one (a|b), and each such combination is a class of its own. "
            "Keep one class a row, or say all of them in the caption."
        )


def _is_misread(text: str) -> bool:
    """Whether it is UTF-8 that was decoded as Windows' Latin letters; such a text hardly ever comes about otherwise."""
    if not NOT_ASCII.search(text):
        return False
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False

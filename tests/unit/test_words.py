"""Words have one meaning each: what docs/glossary.md rules out stands in no file name, no name, no docstring and no page."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
GLOSSARY = PROJECT / "docs" / "glossary.md"
FOLDERS = ("bench", "clipft_tasks", "dags", "deploy", "docs", "examples", "plugins", "serving", "tests")
NOT_READ = ("CHANGELOG.md", "docs/glossary.md", "tests/unit/test_words.py")  # they name the old words on purpose


@dataclass(frozen=True)
class Banned:
    """One row of the table: words, what to say instead, and where they may stand."""

    words: re.Pattern[str]
    instead: str
    files: tuple[str, ...]
    phrases: tuple[str, ...]

    @classmethod
    def parse(cls, words: str, instead: str, allowed: str) -> "Banned":
        forms = "|".join(
            f"{re.escape(w[:-1])}[a-z]*" if w.endswith("*") else f"{re.escape(w)}(?:e?s)?" for w in words.split(", ")
        )
        phrases = re.findall(r"`([^`]+)`", allowed)
        files = re.sub(r"`[^`]+`", "", allowed).split()
        return cls(re.compile(rf"(?<![A-Za-z])(?:{forms})(?![A-Za-z])", re.IGNORECASE), instead, tuple(files), tuple(phrases))

    def found_in(self, file: str, text: str) -> list[str]:
        if any(fnmatch(file, pattern) for pattern in self.files):
            return []
        for phrase in self.phrases:
            text = re.sub(rf"(?<![A-Za-z]){re.escape(phrase)}(?![A-Za-z])", " ", text, flags=re.IGNORECASE)
        return self.words.findall(text)


def table() -> list[Banned]:
    text = GLOSSARY.read_text().partition("## Words that are not used")[2]
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return [Banned.parse(*[*row, ""][:3]) for row in rows[1:]]


BANNED = table()


def spelled(name: str) -> str:
    """`openedImageCount_2` as the words that it is made of."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name))


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a file says, with line numbers: a page every line; code the names that it defines, docstrings and comments."""
    source = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, spelled(node.name)
            case ast.arg():
                yield node.lineno, spelled(node.arg)
            case ast.Name(ctx=ast.Store()):
                yield node.lineno, spelled(node.id)
            case ast.Attribute(ctx=ast.Store()):
                yield node.lineno, spelled(node.attr)
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def files() -> list[Path]:
    found = [*PROJECT.glob("*.md"), *(p for folder in FOLDERS for p in (PROJECT / folder).rglob("*"))]
    kept = (p for p in found if p.suffix in (".py", ".md") and "__pycache__" not in p.parts and ".clipft" not in p.parts)
    return sorted(p for p in kept if str(p.relative_to(PROJECT)) not in NOT_READ)


def complaints(file: str, texts: Iterator[tuple[int, str]]) -> list[str]:
    spoken = [(0, spelled(file)), *texts]
    return [
        f"{file}:{line}: {word!r}; use {banned.instead}"
        for banned in BANNED
        for line, text in spoken
        for word in banned.found_in(file, text)
    ]


@pytest.mark.parametrize("folder", [".", *FOLDERS])
def test_only_the_glossarys_words_are_used(folder):
    mine = [p for p in files() if p.relative_to(PROJECT).parts[0] == folder or (folder == "." and p.parent == PROJECT)]
    assert mine
    wrong = [c for p in mine for c in complaints(str(p.relative_to(PROJECT)), texts_of(p))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "def picture_of(): ...",
        "x = 1  # all pictures",
        'def f():\n    """Colours of things."""',
        "class GreyImage: ...",
        "y.figure = 1",
    ],
)
def test_a_banned_word_is_found_wherever_it_stands(line, tmp_path):
    (tmp_path / "module.py").write_text(line + "\n")
    assert complaints("clipft_tasks/module.py", texts_of(tmp_path / "module.py"))
    assert complaints("clipft_tasks/data/pictures.py", iter(()))
    assert not complaints("tests/behaviour/test_gate.py", iter([(1, "an image and a metric; a generalist")]))

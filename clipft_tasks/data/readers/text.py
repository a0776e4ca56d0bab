"""Texts of a source: decoded as their mark says or as UTF-8, never guessed. Cells as captions, labels, names and splits."""

import ast
import codecs
import json
import re
import unicodedata

from ..images import BadImageError

# Byte order marks, the longer first: that of UTF-32 begins like that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Cells as Excel leaves them: the value of a formula that shows text, an error, a number of which the last digits are gone.
AS_TEXT = re.compile(r'="([^"]*)"')
ERROR = re.compile(r"#(N/A|NV|REF!|BEZUG!|NAME\?|VALUE!|WERT!|VALEUR!|NULL!|DIV/0!|NUM!|ZAHL!)", re.I)
SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d{2}")
LIST = re.compile(r"""[\[({]\s*["'].*["'\]}]\s*,?\s*[\])}]""", re.S)  # a list or an object that a program wrote as text
BOXES = re.compile(r"(\d+( -?[\d.]+(e-?\d+)?){4,}\s*)+")  # a class and a box a line, as YOLO writes them
EXACT = 2**53  # from here on floating-point numbers skip integers
SPLIT_NAMES = {
    "train": ("train", "training", "trn", "entrainement", "entraînement", "apprentissage", "entrenamiento", "addestramento",
              "treino", "treinamento", "обучение", "训练", "訓練", "学習"),
    "val": ("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation", "validierung", "validación",
            "validacion", "validazione", "validação", "validacao", "validatie", "валидация", "验证", "検証"),
    "test": ("test", "testing", "tst", "prüfung", "pruefung", "prueba", "pruebas", "teste", "тест", "测试", "テスト"),
}  # fmt: skip
SPLIT = re.compile(
    "|".join(f"(?P<{split}>{'|'.join(names)})" for split, names in SPLIT_NAMES.items()).join(
        ("(?:", r")[-_ ]?(?:set|data|images|split|s?daten|s?satz|集|\d{1,4})?")
    )
)


def decoded(data: bytes) -> str:
    """A text file's text. Raises BadImageError where its encoding is unknown: a wrong guess would be learned as if it were meant."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        why = f"its text is not {encoding.upper()} (byte {error.start}: {error.reason}); save it as UTF-8"
        raise BadImageError(why, "text of unknown encoding") from error
    if "\0" in text:
        raise BadImageError(
            "its text holds null characters: UTF-16 without a byte order mark? Save it as UTF-8", "text of unknown encoding"
        )
    return text.strip()


def split_of(name: str) -> str:
    """train, val or test where a word names one of them (`Validation`, `dev`, `train2017`), else the word in small letters."""
    word = unicodedata.normalize("NFC", name).strip().lower()
    found = SPLIT.fullmatch(word)
    return found.lastgroup if found and found.lastgroup else word


def split_in(name: str) -> str:
    """The same for a name of which the first or the last word is one (`chest_train`, `test_hard`)."""
    words = re.split(r"[-_. ]+", name.strip())
    return next((said for word in (name, words[0], words[-1]) if (said := split_of(word)) in SPLIT_NAMES), split_of(name))


def captions_of(value: object) -> list[object]:
    """A cell of captions as the captions that it holds; a list may be written as text, as pandas and JSON write one.

    Raises: BadImageError for what a program wrote as text and cannot be read again without guessing.
    """
    if isinstance(value, str) and LIST.fullmatch(value.strip()):
        value = _written(value.strip())
    return [each for each in value if each is not None] if isinstance(value, (list, tuple)) else [value]


def _written(text: str) -> object:
    """The list or object that a text is; Python would take two texts without a comma between them for one."""
    for read in (json.loads, ast.literal_eval):
        if read is ast.literal_eval and re.search(r"""["']\s+["']""", text):
            break
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise BadImageError(f"its text is a list or an object that cannot be read: {text[:80]}", "lists that cannot be read")


def cell(value: object, what: str) -> str:
    """A cell as text, its letters composed. Raises BadImageError for what is none: lists, objects, bytes, errors, numbers that lost digits."""
    if isinstance(value, str) and not value.startswith(("[", "{", "(")):
        return _cell_of_text(value, what)
    several = captions_of(value)
    if len(several) == 1:
        value = several[0]
    elif what == "label":
        raise BadImageError(
            f"its label is a list of {len(several)}: a row has one class. Say the others in its caption, or give each a row",
            "several labels",
        )
    if isinstance(value, BadImageError):  # of a cell that could not be read
        raise value
    if value is None or value != value:  # a missing number is not equal to itself
        return ""
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= EXACT:
            why = f"its {what} {value:.0f} went through floating point, which keeps no such number exactly; write it as text"
            raise BadImageError(why, "numbers that lost digits")
        return str(int(value))
    if isinstance(value, (list, tuple, dict, bytes)):
        raise BadImageError(f"its {what} is no text but {type(value).__name__}", f"{what} that is no text")
    return _cell_of_text(str(value), what)


def _cell_of_text(value: str, what: str) -> str:
    text = value.strip()
    if what == "image":  # the file may be called so; letters are as the disk has them
        return text
    text = unicodedata.normalize("NFC", text)
    if found := AS_TEXT.fullmatch(text):
        return found[1].strip()
    if ERROR.fullmatch(text):
        raise BadImageError(f"its {what} is the error {text}", "cells that hold an error")
    if what != "caption" and SHORTENED.fullmatch(text):
        raise BadImageError(f"its {what} {text} is a number that Excel cut; write it as text", "numbers that lost digits")
    return text

"""Texts of a source: decoded as their mark says or as UTF-8, never guessed. Cells as captions, labels, names and splits."""

import ast
import codecs
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


def captions_of(value: object) -> list[object]:
    """A cell of captions as the captions that it holds; a list may be written as text, as pandas writes one."""
    if isinstance(value, str) and value.startswith("[") and value.rstrip().endswith("]"):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [value]
        value = found if isinstance(found, list) and all(isinstance(each, str) for each in found) else value
    return list(value) if isinstance(value, (list, tuple)) else [value]


def cell(value: object, what: str) -> str:
    """A cell as text. Raises BadImageError for what is none: lists, objects, bytes, numbers that lost digits."""
    if isinstance(value, str) and not value.startswith("["):
        return value.strip()
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
    return str(value).strip()

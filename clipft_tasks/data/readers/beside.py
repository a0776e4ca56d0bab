"""Texts beside images: `x.txt` or `x.jpg.txt` is the caption of `x.jpg`."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ..images import BadImageError
from .links import Root
from .text import BOXES, decoded


def stem(path: Path) -> Path:
    """A path without its ending; that of a packed volume is `.nii.gz`."""
    plain = path.with_suffix("")
    return plain.with_suffix("") if path.name.lower().endswith(".nii.gz") else plain


def texts_of(every: Iterable[Path], found: Iterable[Path]) -> dict[Path, Path]:
    """The text of each image that has one, whatever the case of its ending and however the letters of its name are composed."""
    texts = {_composed(path.with_suffix("")): path for path in every if path.suffix.lower() == ".txt"}
    return {path: texts[name] for path in found for name in (_composed(stem(path)), _composed(path)) if name in texts}


def text_of(root: Root, text: Path | None) -> str:
    """What a text says; "" for none, or where it leads out of `root`. Raises BadImageError, OSError."""
    if text is None or not root.holds((root / text).resolve()):
        return ""
    said = decoded((root / text).read_bytes())
    if BOXES.fullmatch(said):
        raise BadImageError("the text beside it holds boxes or outlines, no caption", "boxes in place of a caption")
    return unicodedata.normalize("NFC", said)


def _composed(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path))

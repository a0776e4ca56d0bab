"""JSON of large bodies, without holding up other threads: a parser keeps Python's lock until it is done, for 100 ms where a body has
some images. So its shape is checked first, and its long strings, which can only be images, are taken out and decoded piece by piece;
what is left is small.
"""

import binascii
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from .errors import RequestRejectedError

LOOKED_AT = 2**18  # bytes at once
DECODED = 2**18
LEFT = 8 * 2**20  # most bytes beside long strings
QUOTE, BACKSLASH = ord('"'), ord("\\")
IS_PART = np.zeros(256, bool)
IS_PART[[ord(sign) for sign in ",:[{"]] = True
STANDARD = bytes.maketrans(b"-_", b"+/")  # base64 has two alphabets
CODES = [(code, bytes([sign])) for sign in b"+/=-_ \r\n\t" for code in {b"%02x" % sign, b"%02X" % sign}]
PERCENT = [(b"%" + code, sign) for code, sign in CODES]  # as a URI may write what base64 has
ESCAPED = [(b"\\/", b"/"), (b"\\n", b""), (b"\\r", b""), (b"\\t", b"")]  # as JSON may; .NET writes \u002B for a plus
ESCAPED += [(b"\\u00" + code, sign) for code, sign in CODES]
SPACE = b" \t\r\n"
PADDING = re.compile(rb"(?:=|\\[nrt]|[ \t\r\n]|(?:%|\\u00)(?:3[dD]|0[aAdD9]|20))*$")
CUT_ESCAPE = re.compile(rb"(?:\\.{0,4}|%.?)$", re.DOTALL)


class ShapeError(Exception):
    """A body of more, or longer, parts than any request has."""


def long_strings(raw: memoryview, *, parts: int, shortest: int, longest: int) -> list[tuple[int, int]]:
    """Where JSON's strings of more than `shortest` bytes lie: after the opening quote, before the closing one.

    Args:
        parts: most commas, colons and opening brackets outside strings.
        longest: bytes of a string.
    Raises: ShapeError.
    """
    values = np.frombuffer(raw, np.uint8)
    found: list[tuple[int, int]] = []
    opened, count, slashes = -1, 0, 0  # the open string's begin; parts so far; backslashes that the last piece ended with
    for start in range(0, len(values), LOOKED_AT):
        piece = values[start : start + LOOKED_AT]
        quotes, slashes = _quotes(piece, slashes)
        signs = np.flatnonzero(IS_PART[piece])
        count += int(np.count_nonzero((np.searchsorted(quotes, signs) + (opened >= 0)) % 2 == 0))
        if count > parts:
            raise ShapeError(f"more than {parts:,} parts")
        bounds = np.concatenate([np.array([opened - 1] if opened >= 0 else [], np.int64), quotes + start])
        begins, ends = bounds[0::2] + 1, bounds[1::2]
        lengths = ends - begins[: len(ends)]
        found += [(int(begins[n]), int(ends[n])) for n in np.flatnonzero(lengths > shortest)]
        opened = int(begins[-1]) if len(begins) > len(ends) else -1
        if (len(lengths) and lengths.max() > longest) or (opened >= 0 and start + len(piece) - opened > longest):
            raise ShapeError(f"a string of more than {longest:,} bytes")
    return found


def _quotes(piece: np.ndarray, slashes: int) -> tuple[np.ndarray, int]:
    """Where quotes are that no backslash escapes, and how many backslashes the piece ends with, and those before it where it has
    nothing else."""
    quotes = np.flatnonzero(piece == QUOTE)
    is_slash = piece == BACKSLASH
    if not slashes and not is_slash.any():
        return quotes, 0
    place = np.arange(len(piece), dtype=np.int32)
    other = np.maximum.accumulate(np.where(is_slash, np.int32(-1), place))  # the last sign that is none
    run = np.where(other < 0, place + 1 + slashes, place - other)  # backslashes up to here
    before = np.concatenate([[slashes], run])[quotes]
    return quotes[before % 2 == 0], int(run[-1])


@dataclass
class LongStrings:
    """The long strings of a body, each named by a mark that stands in its place.

    Attributes:
        unread: those that nothing has asked for yet.
    """

    raw: memoryview
    spans: list[tuple[int, int]]
    mark: str = field(default_factory=lambda: secrets.token_hex(12))
    unread: set[int] = field(default_factory=set)

    def taken_out(self) -> bytes:
        """The body with marks. A data: URI keeps its head. Raises ShapeError where much else is left."""
        if len(self.raw) - sum(end - begin for begin, end in self.spans) > LEFT:
            raise ShapeError(f"more than {LEFT / 2**20:g} MiB beside its images")
        pieces, at = [], 0
        for number, (begin, end) in enumerate(self.spans):
            head = bytes(self.raw[begin : begin + 200])
            kept = head.index(b",") + 1 if head.lstrip(SPACE)[:5].lower() == b"data:" and b"," in head else 0
            pieces += [bytes(self.raw[at : begin + kept]), f"{self.mark}{number}".encode()]
            self.spans[number] = (begin + kept, end)
            self.unread.add(number)
            at = end
        return b"".join([*pieces, bytes(self.raw[at:])])

    def number_of(self, text: str) -> int | None:
        """Which long string a mark stands for; None for any other text."""
        number = text[len(self.mark) :]
        return int(number) if text.startswith(self.mark) and number.isdecimal() else None

    def decoded(self, number: int) -> bytes:
        """The bytes that a string of base64 stands for. Raises ValueError."""
        self.unread.discard(number)
        begin, end = self.spans[number]
        if padding := PADDING.search(bytes(self.raw[max(begin, end - 100) : end])):
            end -= len(padding[0])
        pieces, left = [], b""
        for at in range(begin, end, DECODED):
            piece, left = left + bytes(self.raw[at : min(at + DECODED, end)]), b""
            if at + DECODED < end and (cut := CUT_ESCAPE.search(piece, len(piece) - 5)):  # its rest comes with the next piece
                piece, left = piece[: cut.start()], cut[0]
            for known, sign in ((ESCAPED, BACKSLASH), (PERCENT, ord("%"))):
                for escaped, plain in known if sign in piece else ():
                    piece = piece.replace(escaped, plain)
            piece = piece.translate(STANDARD, SPACE)
            whole = len(piece) // 4 * 4
            piece, left = piece[:whole], piece[whole:] + left
            if b"=" in piece:
                raise ValueError("padding before the end")
            pieces.append(binascii.a2b_base64(piece, strict_mode=True) if piece else b"")
        if left:
            pieces.append(binascii.a2b_base64(left + b"=" * (-len(left) % 4), strict_mode=True))
        return b"".join(pieces)


LONG_STRINGS: ContextVar[LongStrings | None] = ContextVar("long_strings", default=None)


@contextmanager
def without_long_strings(raw: memoryview, *, parts: int, shortest: int, longest: int) -> Iterator[bytes]:
    """The JSON of a body with marks in place of its long strings; while it is read, `schemas` finds them by their marks.

    Raises: RequestRejectedError, also at the end where a long string was no image.
    """
    try:
        strings = LongStrings(raw, long_strings(raw, parts=parts, shortest=shortest, longest=longest))
        small = strings.taken_out()
    except ShapeError as error:
        raise RequestRejectedError(413, f"The JSON of the body has {error}; send less in one request.", "too_many") from None
    token = LONG_STRINGS.set(strings)
    try:
        yield small
    except ValueError:
        _check_read(strings)
        raise
    else:
        _check_read(strings)
    finally:
        LONG_STRINGS.reset(token)


def _check_read(strings: LongStrings) -> None:
    if strings.unread:
        begin, end = strings.spans[min(strings.unread)]
        raise RequestRejectedError(
            422, f"A string of {end - begin:,} bytes is no image, and too long for anything else.", "long_text"
        )

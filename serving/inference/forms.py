"""Multipart forms, read whole from memory: few parts, UTF-8 only, and nothing of a form whose end is missing."""

from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .errors import RequestRejectedError

PIECE = 2**18  # bytes that are parsed at once


@dataclass
class Part:
    """One field: its name, its content, and whether it is a file."""

    name: str = ""
    is_file: bool = False
    content: bytearray = field(default_factory=bytearray)


def is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def read_form(body: memoryview, content_type: str, most: int) -> list[Part]:
    """The fields of a form, in their order.

    Args:
        most: fields; where it is plain that a form has more, it is refused before any of them is read.
    Raises: RequestRejectedError.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise _refused("the content type names no boundary")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise _refused("a form must be in UTF-8")
    if _count(body, b"\r\n--" + boundary + b"\r\n") > most:
        raise _too_many(most)
    reader = _Reader(most)
    try:
        callbacks: Any = reader.callbacks()  # python-multipart types them as one by one
        parser = MultipartParser(boundary, callbacks, max_header_count=8)
        for start in range(0, len(body), PIECE):  # others get a turn in between
            parser.write(bytes(body[start : start + PIECE]))
        parser.finalize()
    except FormParserError as error:
        raise _refused(f"it cannot be read ({error})") from None
    if not reader.ended:
        raise _refused("its end is missing: the last boundary has not come")
    return reader.parts


class _Reader:
    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self.ended, self._most = False, most
        self._header, self._value = b"", b""

    def callbacks(self) -> dict[str, object]:
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        if len(self.parts) >= self._most:
            raise _too_many(self._most)
        self.parts.append(Part())

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].content += data[start:end]

    def part_end(self) -> None:
        if not self.parts[-1].name:
            raise _refused("one of its fields has no name")

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        header, self._header, value, self._value = self._header.lower(), b"", self._value, b""
        if header == b"content-disposition":
            _, options = parse_options_header(value)
            try:
                self.parts[-1].name = options.get(b"name", b"").decode()
            except UnicodeDecodeError:
                raise _refused("the name of a field is not UTF-8") from None
            self.parts[-1].is_file = b"filename" in options
        elif header == b"content-type":
            said = Message()
            said["content-type"] = value.decode("latin-1")
            charset = str(said.get_param("charset", "utf-8")).lower()
            if charset not in ("utf-8", "utf8", "us-ascii"):
                raise _refused("a field must be in UTF-8")

    def end(self) -> None:
        self.ended = True


def _count(body: memoryview, sought: bytes) -> int:
    """How often bytes are found, overlaps apart; a copy of a piece at a time."""
    overlap = len(sought) - 1
    return sum(bytes(body[start : start + PIECE + overlap]).count(sought) for start in range(0, len(body), PIECE))


def _too_many(most: int) -> RequestRejectedError:
    return RequestRejectedError(413, f"The form has more than {most} fields.", "too_many")


def _refused(why: str) -> RequestRejectedError:
    return RequestRejectedError(422, f"The form is refused: {why}.", "malformed")

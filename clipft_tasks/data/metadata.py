"""What an image file says beside its pixels: dropped, but for what pixels need (orientation, color profile).

Cameras write where a photo was taken, on whose device and by whom; such bytes must not reach shards, remotes and backups. Files
are rewritten without decoding, so no pixel changes; a file that says nothing of the kind keeps every byte. A broken file comes
back as far as it was understood: decoding it is what refuses it.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from PIL import Image

from . import jpeg2000

ORIENTATION = 0x0112
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNED = (b"Raw profile type exif", b"Raw profile type APP1", b"XML:com.adobe.xmp")  # texts that may hold an orientation
PNG_LARGEST = 1 << 16  # bytes of such a text
JPEG_KEPT = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}  # application segments by how they begin
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # ends the coded pixels: neither a stuffed zero nor a restart
# TIFF 6.0, Exif 3.0 and XMP: description, make, model, software, date, artist, host, XMP, copyright, IPTC, Photoshop, Exif and
# GPS directories, owner, serial numbers, lens, ImageJ's notes.
TIFF_DROPPED = {270, 271, 272, 305, 306, 315, 316, 700, 33432, 33723, 34377, 34665, 34853, *range(42032, 42038), 50838, 50839}
TIFF_DIRECTORIES = {34665, 34853, 40965}
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MOST_DIRECTORIES = 10_000
CHUNKS = 100_000


def without_text(data: bytes) -> bytes:
    """A PNG without texts and color profile, which decoders bound and pixels do not need; anything else as it is. Raises ValueError
    for more chunks than any image has."""
    if not data.startswith(PNG):
        return data
    chunks = list(islice(_png_chunks(data), CHUNKS + 1))
    if len(chunks) > CHUNKS:
        raise ValueError(f"more than {CHUNKS:,} chunks")
    return _joined(data, (whole for kind, body, whole in chunks if not (kind == b"iCCP" or _is_text(kind, body))))


def stripped(data: bytes) -> bytes:
    """The file without what its metadata says of places, times, devices and persons. Pixels decode as before."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data.startswith(PNG):
            return _png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _Tiff(data).stripped()
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return _gif(data)
        if jpeg2000.is_one(data):
            return _joined(data, jpeg2000.without_notes(data))
        if data[4:8] == b"ftyp":
            return _heif(data)
    except (struct.error, IndexError):
        pass
    return data


def _joined(data: bytes, parts: Iterator[bytes]) -> bytes:
    out = b"".join(parts)
    return data if out == data else out


def orientation_of(exif: bytes) -> int:
    """1 to 8, as Exif counts; 1 where it says none."""
    found = Image.Exif()
    try:
        found.load(exif)
        value = found.get(ORIENTATION, 1)
    except Exception:  # broken Exif is no reason to refuse an image
        return 1
    return value if value in range(1, 9) else 1


def _exif(orientation: int) -> bytes:
    """A directory with the orientation alone."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)


# JPEG -----------------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes) -> bytes:
    orientation, out, place = 1, [b"\xff\xd8"], 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        if marker == 0xD9:
            out.append(b"\xff\xd9")  # what follows is no part of this image: a second frame, a film, a note of the camera
            break
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        body = data[place + 4 : end]
        if marker == 0xE1 and body.startswith(b"Exif\0"):
            orientation = max(orientation, orientation_of(body))
        elif not (marker == 0xFE or 0xE0 <= marker <= 0xEF) or body.startswith(JPEG_KEPT.get(marker, b"\0none")):
            if marker == 0xDA:
                found = MARKER.search(data, end)
                end = found.start() if found else len(data)
            out.append(data[place:end])
        place = end
        if place >= len(data):
            break
    if orientation > 1:
        segment = b"Exif\0\0" + _exif(orientation)
        at = 2 if out[1:2] and out[1][:2] == b"\xff\xe0" else 1  # JFIF stays first
        out.insert(at, b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment)
    return _joined(data, iter(out))


# PNG ------------------------------------------------------------------------------------------------------------------


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, content, whole chunk); the signature and a cut rest have no kind."""
    yield b"", b"", data[:8]
    place = 8
    while place < len(data):
        if place + 12 > len(data):
            yield b"", b"", data[place:]
            return
        length = struct.unpack_from(">I", data, place)[0]
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if end > len(data):
            yield b"", b"", data[place:]
            return
        yield kind, data[place + 8 : end - 4], data[place:end]
        place = end
        if kind == b"IEND":
            return


def _is_text(kind: bytes, body: bytes) -> bool:
    """Whether it is a text that says nothing of the orientation, or is too long for that."""
    return kind in PNG_TEXT and (len(body) > PNG_LARGEST or not body.startswith(PNG_TURNED))


def _png(data: bytes) -> bytes:
    parts, turned = [], False
    for kind, body, whole in _png_chunks(data):
        turned |= kind in PNG_TEXT and not _is_text(kind, body)
        if kind == b"eXIf":
            turned = True
        elif kind not in (*PNG_TEXT, b"tIME"):
            parts.append(whole)
    if turned and (orientation := _orientation_of_image(data)) > 1:
        chunk = b"eXIf" + _exif(orientation)
        parts.insert(2, struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)))
    return _joined(data, iter(parts))


def _orientation_of_image(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(without_text(data)), formats=["PNG", "WEBP"]) as image:
            value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # decoding it is what refuses it
        return 1
    return value if value in range(1, 9) else 1


# WebP, GIF ------------------------------------------------------------------------------------------------------------


def _webp(data: bytes) -> bytes:
    parts, place, exif = [], 12, b""
    while place + 8 <= len(data):
        kind, length = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        end = place + 8 + length + (length & 1)
        if kind == b"EXIF":
            exif = data[place + 8 : place + 8 + length]
        elif kind in (b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"ICCP"):
            parts.append(data[place:end])
        place = end
    orientation = orientation_of(exif) if exif else 1
    if parts and parts[0][:4] == b"VP8X":
        flags = parts[0][8] & ~0x0C | (0x08 if orientation > 1 else 0)
        parts[0] = parts[0][:8] + bytes([flags]) + parts[0][9:]
        if orientation > 1:
            body = _exif(orientation)
            parts.append(b"EXIF" + struct.pack("<I", len(body)) + body)
    body = b"WEBP" + b"".join(parts)
    if place > len(data):  # cut short: its promise of length stays, so that decoding notices
        return data[:8] + body
    return _joined(data, iter((b"RIFF", struct.pack("<I", len(body)), body)))


def _gif(data: bytes) -> bytes:
    """Without comments and without application data other than the number of loops."""

    def table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    def blocks_end(place: int) -> int:
        while data[place]:
            place += data[place] + 1
        return place + 1

    place = 13 + table(data[10])
    out = [data[:place]]
    while data[place] != 0x3B:
        start = place
        if data[place] == 0x21:
            place = blocks_end(place + 2)
            kept = data[start + 1] not in (0xFE, 0xFF) or data[start + 3 : start + 14] in (b"NETSCAPE2.0", b"ANIMEXTS1.0")
        elif data[place] == 0x2C:
            place, kept = blocks_end(place + 10 + table(data[place + 9]) + 1), True
        else:
            return data
        if kept:
            out.append(data[start:place])
    return _joined(data, iter((*out, b";")))


# HEIF and AVIF --------------------------------------------------------------------------------------------------------


def _heif(data: bytes) -> bytes:
    """Exif directories edited where they lie, XMP overwritten with blanks: no offset of any pixel changes."""
    out = bytearray(data)
    for found in re.finditer(rb"II\*\0\x08\0\0\0|MM\0\*\0\0\0\x08", data):
        directory = _Tiff(data[found.start() :])
        if directory.plausible():
            out[found.start() :] = directory.stripped()
    for packet in re.finditer(rb"<x:xmpmeta.*?</x:xmpmeta>|<\?xpacket begin.*?<\?xpacket end[^>]*>", data, re.DOTALL):
        out[packet.start() : packet.end()] = b" " * len(packet[0])
    return data if out == data else bytes(out)


# TIFF -----------------------------------------------------------------------------------------------------------------


class _Tiff:
    """A TIFF or BigTIFF file whose directories are edited in place: no offset of any strip or tile changes."""

    def __init__(self, data: bytes) -> None:
        self.original, self.data = data, bytearray(data)
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = data[2:4] in (b"+\0", b"\0+")
        self.count, self.entry, self.word = ("Q", 20, "Q") if self.big else ("H", 12, "I")

    def stripped(self) -> bytes:
        seen: set[int] = set()
        waiting = [self._number(self.word, 8 if self.big else 4)]
        while waiting and len(seen) < MOST_DIRECTORIES:
            place = waiting.pop()
            if place and place not in seen:
                seen.add(place)
                waiting += self._directory(place)
        return self.original if self.data == self.original else bytes(self.data)

    def plausible(self) -> bool:
        """Whether the first directory has few entries, sorted and of known types: unlikely in coded pixels."""
        count = self._number("H", 8)
        if not 0 < count < 200 or 10 + 12 * count > len(self.data):
            return False
        entries = [struct.unpack_from(self.order + "HH", self.data, 10 + 12 * i) for i in range(count)]
        return all(kind in TIFF_SIZES for _, kind in entries) and entries == sorted(entries)

    def _number(self, kind: str, place: int) -> int:
        value: int = struct.unpack_from(self.order + kind, self.data, place)[0]
        return value

    def _value(self, place: int) -> tuple[int, int, int]:
        """(tag, where its values lie, bytes of them) of the entry at a place."""
        tag, kind = struct.unpack_from(self.order + "HH", self.data, place)
        at = place + 4 + struct.calcsize("=" + self.word)
        size = TIFF_SIZES.get(kind, 1) * self._number(self.word, place + 4)
        inside = size <= struct.calcsize("=" + self.word)
        return tag, at if inside else self._number(self.word, at), size

    def _directory(self, place: int) -> list[int]:
        """Drop entries of a directory. Returns: where the next and the ones below it lie."""
        width = struct.calcsize("=" + self.count)
        count = self._number(self.count, place)
        first = place + width
        after = first + count * self.entry
        kept, below = [], []
        for at in range(first, after, self.entry):
            tag, values, size = self._value(at)
            if tag in TIFF_DROPPED:
                self._blank(tag, values, size, 0)
                continue
            if tag == 330:  # SubIFDs
                step = struct.calcsize("=" + self.word)
                below += [self._number(self.word, values + i) for i in range(0, min(size, 64 * step), step)]
            kept.append(bytes(self.data[at : at + self.entry]))
        end = after + struct.calcsize("=" + self.word)
        following = bytes(self.data[after:end])
        if len(kept) < count:
            body = struct.pack(self.order + self.count, len(kept)) + b"".join(kept) + following
            self.data[place:end] = body + bytes(end - place - len(body))
        return [struct.unpack(self.order + self.word, following)[0], *below]

    def _blank(self, tag: int, values: int, size: int, depth: int) -> None:
        if tag in TIFF_DIRECTORIES and depth < 3:
            place = self._number(self.word, values)
            first = place + struct.calcsize("=" + self.count)
            after = first + min(self._number(self.count, place), 1000) * self.entry
            if place and after <= len(self.data):
                for at in range(first, after, self.entry):
                    self._blank(*self._value(at), depth + 1)
                self.data[place:after] = bytes(after - place)
        end = min(values + size, len(self.data))
        if values < end:
            self.data[values:end] = bytes(end - values)

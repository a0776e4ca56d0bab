"""JSON of large bodies: its shape is checked before it is parsed, and its images come out as any parser would give them."""

import base64
import json
import re
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.inference import large_json
from serving.inference.admission import SMALL_JSON, Admission
from serving.inference.errors import RequestRejectedError
from serving.inference.large_json import LongStrings, ShapeError, long_strings
from serving.inference.request_parsing import read
from serving.inference.schemas import EmbedImages, EmbedTexts
from serving.inference.settings import ServingSettings


@pytest.fixture(scope="module")
def admission():
    made = Admission(ServingSettings())
    yield made
    made.close()


def plainly(raw: bytes) -> tuple[list[tuple[int, int]], int]:
    """Strings and parts, sign by sign."""
    strings, parts, begin, is_escaped = [], 0, -1, False
    for n, sign in enumerate(raw):
        if begin < 0:
            begin = n + 1 if sign == ord('"') else -1
            parts += sign in b",:[{"
        elif is_escaped:
            is_escaped = False
        elif sign == ord("\\"):
            is_escaped = True
        elif sign == ord('"'):
            strings.append((begin, n))
            begin = -1
    return strings, parts


ODD = st.text(alphabet='a"\\,:{[/\n\u00e9', max_size=40)


@given(st.recursive(ODD, lambda inner: st.lists(inner) | st.dictionaries(ODD, inner)), st.sampled_from([1, 3, 7, 64]))
def test_strings_and_parts_are_found_wherever_pieces_end(value, piece):
    raw = memoryview(json.dumps(value).encode())
    strings, parts = plainly(bytes(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LOOKED_AT", piece)
        assert long_strings(raw, parts=parts, shortest=-1, longest=10**6) == strings
        if parts:
            with pytest.raises(ShapeError, match="parts"):
                long_strings(raw, parts=parts - 1, shortest=-1, longest=10**6)
        if longest := max((end - begin for begin, end in strings), default=0):
            with pytest.raises(ShapeError, match="string"):
                long_strings(raw, parts=parts, shortest=-1, longest=longest - 1)


SPELLINGS = {
    "plain": lambda text: text,
    "url-safe": lambda text: text.replace("+", "-").replace("/", "_"),
    "no padding": lambda text: text.rstrip("="),
    "wrapped": lambda text: "\r\n".join(re.findall(".{1,76}", text)),
}


@given(st.binary(min_size=3, max_size=300), st.sampled_from([*SPELLINGS]), st.booleans(), st.sampled_from([5, 8, 64]))
def test_base64_in_any_spelling_is_decoded_piece_by_piece(content, spelling, is_escaped, piece):
    text = json.dumps(SPELLINGS[spelling](base64.b64encode(content).decode()))
    raw = memoryview((text.replace("/", "\\/") if is_escaped else text).encode())
    strings = LongStrings(raw, [(1, len(raw) - 1)])
    mark = json.loads(strings.taken_out())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "DECODED", piece)
        assert strings.decoded(strings.number_of(mark)) == content and not strings.unread


@pytest.mark.parametrize("wrong", [b"A" * 13, b"AA!A" * 9, b"AAA=AAAA" * 9, b"\\u0041AAA" * 9, "Ä".encode() * 40])
def test_what_is_no_base64_is_not_decoded(wrong):
    strings = LongStrings(memoryview(wrong), [(0, len(wrong))])
    strings.taken_out()
    with pytest.raises(ValueError):
        strings.decoded(0)


SPELLED = {
    "plain": lambda text: text,
    "data: URI": lambda text: "data:image/png;base64," + text,
    "in capitals, with a parameter": lambda text: " DATA:IMAGE/PNG;charset=utf-8; BASE64 ," + text,
    "percent-encoded": lambda text: "data:image/png;base64," + quote(text, safe=""),
    "percent-encoded in small letters": lambda text: text.replace("=", "%3d").replace("+", "%2b").replace("/", "%2f") + "%0a",
}
WRITTEN = {
    "plain": lambda text: text,
    "slashes escaped, as by PHP": lambda text: text.replace("/", "\\/"),
    "plus signs escaped, as by .NET": lambda text: text.replace("+", "\\u002B"),
    "all signs escaped": lambda text: text.replace("+", "\\u002b").replace("/", "\\u002f").replace("=", "\\u003d"),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("spelled", SPELLED)
def test_large_images_arrive_as_they_were_sent(admission, spelled, written):
    random = np.random.default_rng(0)
    images = [random.bytes(size) for size in (10, 200_000, 1_000_001)]
    sent = {"domain": "x", "images": [{"base64": SPELLED[spelled](base64.b64encode(one).decode())} for one in images]}
    raw = WRITTEN[written](json.dumps(sent)).encode()
    body = read(memoryview(raw), "application/json", EmbedImages, admission)
    assert [image.content for image in body.images] == images and body.domain == "x"


def test_texts_are_not_taken_for_images(admission):
    texts = ['say "a, b" \\ ' * 300, "[" * 4000, "é" * 4000] * 5
    for ascii in (True, False):
        raw = json.dumps({"texts": texts}, ensure_ascii=ascii).encode()
        assert len(raw) > SMALL_JSON and read(memoryview(raw), "application/json", EmbedTexts, admission).texts == texts


LARGE = {
    "numbers": b"[" + b"1," * 20_000 + b"1]",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a long text": b'{"texts": "' + b"a" * 1_000_000 + b'"}',
    "a long key": b'{"' + b"a" * 1_000_000 + b'": 1}',
    "a long domain": b'{"texts": "x", "domain": "' + b"d" * 1_000_000 + b'"}',
    "an endless string": b'{"texts": "' + b"a" * 30_000_000,
    "space": b" " * 30_000_000,
    "an image twice": b'{"images": [{"base64": "' + b"A" * 100_000 + b'", "base64": "' + b"A" * 100_000 + b'"}]}',
    "an image for a text": b'{"texts": ["' + base64.b64encode(b"a" * 100_000) + b'"]}',
}


@pytest.mark.parametrize("case", LARGE)
def test_what_no_request_is_like_is_refused_in_few_words(admission, case):
    with pytest.raises(RequestRejectedError) as refused:
        read(memoryview(LARGE[case]), "application/json", EmbedImages if "image" in case else EmbedTexts, admission)
    assert refused.value.status in (413, 422) and len(refused.value.detail) < 200

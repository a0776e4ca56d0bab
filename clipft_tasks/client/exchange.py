"""What is asked of the server and how its answers are read, whoever sends the requests."""

import base64
import json
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from ..contracts.serving import EmbeddingList, FeedbackResult, ModelInfo, ModelList, Prediction, Predictions, Similarities
from ..core.errors import ClipftError, TransientError
from ..core.settings import settings
from ..server.client import ServerRefusalError

T = TypeVar("T")
R = TypeVar("R", bound=BaseModel)
Image = bytes | Path
Item = str | Image
AT_ONCE, INPUTS_AT_ONCE, BULK_AT_ONCE = 64, 512, 256  # items of one request
BULK_BYTES = 8 * 2**20  # of one request, about
AGAIN = frozenset({408, 429, 502, 503, 504})
LONGEST_WAIT = 30.0


@dataclass(frozen=True)
class Embedded:
    """Embeddings in the order asked, and the version that made them: those of two versions are not to be compared."""

    vectors: list[list[float]]
    version: str


@dataclass(frozen=True)
class Classified:
    """What one image shows. `answer_id` and `index` are for feedback."""

    prediction: Prediction
    version: str
    answer_id: str
    index: int


@dataclass(frozen=True)
class BulkAnswer:
    """The answer to one of many items: a vector or a class, or why there is none.

    Attributes:
        index: of the item among those that were given, from 0.
        code: of the error, see docs/errors.md; "" where there is none.
    """

    index: int
    version: str
    vector: list[float] | None = None
    classified: Classified | None = None
    error: str = ""
    code: str = ""


@dataclass(frozen=True)
class Call:
    """A request to send."""

    method: str
    path: str
    json: Mapping[str, object] | None = None
    content: bytes | None = None
    query: Mapping[str, str] = field(default_factory=dict)


Flow = Generator[Call, httpx.Response, T]  # what is asked one after the other, whoever sends it


class Exchange(ABC):
    """What both clients ask, and how often.

    Args:
        url: of the server; default: that of the settings.
        domain: whose model answers; may be left out while only one domain is live.
        version: that must answer; default: whichever is live.
        key: of `clipft key add`, or the server's token.
        timeout: seconds that one answer may take.
        retries: that follow a request whose server is away or busy.
    """

    def __init__(
        self,
        url: str = "",
        *,
        domain: str = "",
        version: str = "",
        key: str = "",
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self.url = (url or settings().server_url).rstrip("/")
        self.domain, self.version, self.timeout, self.retries = domain, version, timeout, retries
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make what sends the requests."""

    def _models(self) -> Flow[list[ModelInfo]]:
        return self._read(ModelList, (yield Call("GET", "/v1/models"))).data

    def _embed(self, items: Sequence[Item], dimensions: int | None) -> Flow[Embedded]:
        vectors: list[list[float]] = []
        version = self.version
        for some in _parts(items, INPUTS_AT_ONCE):
            body: dict[str, object] = {"input": [_spelled(item) for item in some], "encoding_format": "base64"}
            if dimensions is not None:
                body["dimensions"] = dimensions
            answer = yield Call("POST", "/v1/embeddings", self._about(version) | body)
            vectors += [_floats(str(one.embedding)) for one in self._read(EmbeddingList, answer).data]
            version = answer.headers["x-clipft-model-version"]  # the others by the same
        return Embedded(vectors, version)

    def _classify(self, images: Sequence[Image], classes: Sequence[str] | None) -> Flow[list[Classified]]:
        out: list[Classified] = []
        for some in _parts(images, AT_ONCE):
            body: dict[str, object] = {"images": [_base64(image) for image in some]} | (
                {"classes": list(classes)} if classes else {}
            )
            answer = yield Call("POST", "/v1/classify", self._about(self.version) | body)
            version, answer_id = answer.headers["x-clipft-model-version"], answer.headers["x-clipft-answer-id"]
            found = self._read(Predictions, answer).predictions
            out += [Classified(one, version, answer_id, n) for n, one in enumerate(found)]
        return out

    def _similarity(self, images: Sequence[Image], texts: Sequence[str]) -> Flow[list[list[float]]]:
        out: list[list[float]] = []
        version = self.version
        for some in _parts(images, AT_ONCE):
            rows: list[list[float]] = [[] for _ in some]
            for words in _parts(texts, AT_ONCE):
                body: dict[str, object] = {"images": [_base64(image) for image in some], "texts": list(words)}
                answer = yield Call("POST", "/v1/similarity", self._about(version) | body)
                version = answer.headers["x-clipft-model-version"]
                for row, more in zip(rows, self._read(Similarities, answer).similarity, strict=True):
                    row += more
            out += rows
        return out

    def _feedback(self, about: Classified, label: str) -> Flow[FeedbackResult]:
        body: dict[str, object] = {"answer_id": about.answer_id, "index": about.index, "label": label}
        return self._read(FeedbackResult, (yield Call("POST", "/v1/feedback", body)))

    def _bulk(self, what: str, items: Sequence[Item], first: int, version: str) -> Flow[list[BulkAnswer]]:
        """One part of many items; `first` is the number of its first one. Where the server ends early, it goes on from there."""
        out: list[BulkAnswer] = []
        while len(out) < len(items):
            body = b"".join(_line(item) for item in items[len(out) :])
            query = {"domain": self.domain, "version": version} | (
                {"encoding_format": "base64"} if what == "embeddings" else {}
            )
            answer = yield Call("POST", f"/v1/bulk/{what}", content=body, query=query)
            version = answer.headers["x-clipft-model-version"]
            *told, last = [json.loads(line) for line in answer.content.splitlines()]
            out += [_bulk_answer(one, first + len(out) + n, version) for n, one in enumerate(told)]
            if not told and "error" in last:
                raise TransientError(f"The server at {self.url} has no room: {last['error']['detail']}")
        return out

    def _about(self, version: str) -> dict[str, object]:
        return {name: value for name, value in (("domain", self.domain), ("version", version)) if value}

    def _wait(self, answer: httpx.Response | httpx.TransportError, tried: int) -> float | None:
        """Seconds until the same is asked again; None where the answer is to be read.

        Raises: TransientError, ServerRefusalError.
        """
        if isinstance(answer, httpx.Response):
            if answer.is_success:
                return None
            said = answer.json() if "json" in answer.headers.get("content-type", "") else {}
            why = str(said.get("detail", answer.text[:500]))
            if answer.status_code not in AGAIN:
                if answer.status_code >= 500:
                    raise TransientError(f"The server at {self.url} answered {answer.status_code}: {why}")
                where = f"the server at {self.url}"
                raise ServerRefusalError(
                    answer.status_code, where, why.rstrip("."), code=str(said.get("code", "server.refused"))
                )
            after = answer.headers.get("retry-after", "")
        else:
            why, after = repr(answer), ""
        if tried >= self.retries:
            raise TransientError(f"The server at {self.url} does not answer after {tried + 1} attempts: {why}")
        asked = float(after) if after.isdecimal() else 0.0
        backoff: float = 0.2 * 2.0**tried
        return max(asked, min(LONGEST_WAIT, backoff)) * random.uniform(1.0, 1.25)

    def _read(self, what: type[R], answer: httpx.Response) -> R:
        try:
            return what.model_validate_json(answer.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            why = f"its answer is none of this release ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            raise ClipftError(
                f"the server at {self.url}", why, "Run the same release on both sides.", code="server.other_release"
            ) from None


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    return (items[start : start + most] for start in range(0, len(items), most))


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items some at a time, by number and bytes; images that are paths are read."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        loaded = item.read_bytes() if isinstance(item, Path) else item
        chunk.append(loaded)
        size += len(loaded)
        if len(chunk) == BULK_AT_ONCE or size > BULK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _base64(image: Image) -> dict[str, str]:
    data = image.read_bytes() if isinstance(image, Path) else image
    return {"base64": base64.b64encode(data).decode()}


def _spelled(item: Item) -> dict[str, str]:
    return {"text": item} if isinstance(item, str) else {"image": _base64(item)["base64"]}


def _line(item: Item) -> bytes:
    return json.dumps(_spelled(item)).encode() + b"\n"


def _floats(encoded: str) -> list[float]:
    """Little-endian float32 in base64."""
    found = array("f", base64.b64decode(encoded))
    return found.tolist()


def _bulk_answer(said: Mapping[str, object], index: int, version: str) -> BulkAnswer:
    wrong = said.get("error")
    if isinstance(wrong, Mapping):
        return BulkAnswer(index, version, error=str(wrong.get("detail", "")), code=str(wrong.get("code", "")))
    if "embedding" in said:
        return BulkAnswer(index, version, vector=_floats(str(said["embedding"])))
    one = Prediction.model_validate(said)
    return BulkAnswer(
        index, version, classified=Classified(one, version, str(said.get("answer_id", "")), int(str(said.get("index", 0))))
    )

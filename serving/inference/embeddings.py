"""Texts and images embedded together, in their order, and the forms in which an embedding travels."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .embedding_request import Encoding
from .errors import RequestRejectedError
from .loaded_model import LoadedModel
from .service import InferenceService

Part = str | bytes  # a text, or an image as it was sent


@dataclass(frozen=True)
class Embedded:
    """Attributes:
    vectors: embeddings (n, d), in the order of the parts.
    tokens: of all texts.
    truncated: numbers, from 1, of texts longer than the model's context.
    """

    vectors: np.ndarray
    tokens: int
    truncated: list[int]


async def embed_parts(
    inference: InferenceService, model: LoadedModel, parts: Sequence[Part], is_traffic: bool, dimensions: int | None = None
) -> Embedded:
    """Embed texts and images. Many are embedded a part at a time, so that one request never takes the whole queue.

    Raises: as InferenceService; a refusal counts images and texts of the request from 1.
    """
    at_once = inference.admission.options.max_items
    done = []
    for start in range(0, len(parts), at_once):
        done.append(await _embed(inference, model, parts[start : start + at_once], start, is_traffic, dimensions))
    return Embedded(
        np.concatenate([one.vectors for one in done]),
        sum(one.tokens for one in done),
        [number for one in done for number in one.truncated],
    )


async def _embed(
    inference: InferenceService, model: LoadedModel, parts: Sequence[Part], start: int, is_traffic: bool, dimensions: int | None
) -> Embedded:
    texts = {n: part for n, part in enumerate(parts) if isinstance(part, str)}
    images = {n: part for n, part in enumerate(parts) if isinstance(part, bytes)}
    vectors: dict[int, np.ndarray] = {}
    tokens, cut = 0, list[int]()
    if texts:
        places = list(texts)
        with _numbered(start, places):
            embedded = await inference.embed_texts(model, list(texts.values()), is_traffic, dimensions)
        vectors |= zip(texts, embedded.vectors, strict=True)
        cut = [start + places[n - 1] + 1 for n in embedded.truncated]
        tokens = sum(count for count in embedded.tokens if count <= embedded.context)
        tokens += await inference.tokenizer.count(model.clip, [texts[places[n - 1]] for n in embedded.truncated])
    if images:
        with _numbered(start, list(images)):
            shown = await inference.embed_images(model, list(images.values()), is_traffic, dimensions)
        vectors |= zip(images, shown, strict=True)
    return Embedded(np.stack([vectors[n] for n in range(len(parts))]), tokens, cut)


@contextmanager
def _numbered(start: int, places: Sequence[int]) -> Iterator[None]:
    """A refusal of one of these parts names it by its place in the whole request."""
    try:
        yield
    except RequestRejectedError as error:
        if error.index is None:
            raise
        place, why = start + places[error.index], error.detail.partition(": ")[2]
        raise RequestRejectedError(error.status, f"Input {place + 1}: {why}", error.reason, index=place) from None


def check_encoding(model: LoadedModel, encoding: Encoding | None) -> None:
    """Raises RequestRejectedError where an embedding of this model cannot travel so."""
    if encoding in ("int8", "binary", "ubinary") and model.clip.similarity.name != "cosine":
        why = f"Embeddings of version {model.version} of {model.domain} are compared by {model.clip.similarity.name}, to which their length counts"
        raise RequestRejectedError(422, f"{why}; {encoding} keeps the direction alone. Ask for float or base64.", "encoding")


def encoded(vectors: np.ndarray, encoding: Encoding | None) -> list[str] | list[list[int]] | list[list[float]]:
    """Embeddings (n, d) as JSON values; None is float."""
    if encoding == "base64":
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors]
    if encoding in (None, "float"):
        floats: list[list[float]] = vectors.tolist()
        return floats
    whole: list[list[int]] = quantized(vectors, encoding).tolist()
    return whole


def quantized(vectors: np.ndarray, encoding: Encoding | None) -> np.ndarray:
    """Embeddings (n, d) -> int8 (n, d), each scaled to its largest number; or their signs, eight a number: uint8 (n, d/8) as
    ubinary, less 128 as int8 for binary."""
    if encoding == "int8":
        largest = np.abs(vectors).max(axis=1, keepdims=True).clip(1e-12)
        return np.asarray(np.round(vectors / largest * 127).astype(np.int8))
    packed = np.packbits(vectors > 0, axis=1)
    return np.asarray(packed if encoding == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8))

"""Embeddings, similarity and classes of what is sent along."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError

from clipft_tasks.contracts.serving import Embeddings, Predictions, Similarities

from ..certainty import answer
from ..errors import RequestRejectedError
from ..loaded_model import LoadedModel
from ..middleware import count_for
from ..request_parsing import documented, parse
from ..schemas import Classify, EmbedImages, EmbedTexts, InferenceBody, Similarity
from ..security import INFER, INFER_TEXTS, is_internal
from ..server import ServerDep
from ..window_memory import ANSWER

B = TypeVar("B", bound=InferenceBody)
router = APIRouter()


@dataclass(frozen=True)
class InferenceRequest(Generic[B]):
    """A request for inference.

    Attributes:
        model: the live version that it is for; the answer's headers name it.
        answer_id: by which feedback and deletion name the answer.
        is_traffic: whether it is to be watched and sampled, or is the pipeline's own.
        is_pinned: whether it names the version that must answer.
    """

    body: B
    model: LoadedModel
    answer_id: str
    is_traffic: bool
    is_pinned: bool


def inference_request(body: type[B]) -> Callable[..., Awaitable[InferenceRequest[B]]]:
    """The dependency that reads a body and finds the model that answers."""

    async def read(request: Request, response: Response, server: ServerDep) -> InferenceRequest[B]:
        try:
            found = await parse(request, body)
        except RequestValidationError:
            server.metrics.refused.labels("malformed").inc()
            raise
        model = server.inference.find_model(*asked_model(request, found))
        count_for(request, model.domain)
        response.headers.update(model.headers)
        ANSWER.set(request.state.id)
        is_pinned = bool(asked_model(request, found)[1])
        return InferenceRequest(found, model, request.state.id, not is_internal(request), is_pinned)

    return read


def asked_model(request: Request, body: InferenceBody) -> tuple[str, str]:
    """Domain and version that are to answer: by the body, and the version also by the header X-Clipft-Model-Version."""
    domain, version = body.asked
    header = request.headers.get("x-clipft-model-version", "")
    if header and version and header != version:
        raise RequestRejectedError(422, "The header X-Clipft-Model-Version and the body name two versions.", "two_versions")
    return domain, version or header


def truncated(numbers: list[int]) -> dict[str, str]:
    """The header that says which texts were cut."""
    return {"X-Clipft-Truncated": ",".join(map(str, numbers))} if numbers else {}


@router.post("/v1/embed/images", dependencies=INFER, openapi_extra=documented(EmbedImages))
async def embed_images(
    request: Annotated[InferenceRequest[EmbedImages], Depends(inference_request(EmbedImages))], server: ServerDep
) -> Embeddings:
    """Embeddings of images, unit vectors where the model's similarity is the cosine."""
    images = [image.content for image in request.body.images]
    out = await server.inference.embed_images(request.model, images, request.is_traffic, request.body.dimensions)
    return Embeddings(embeddings=out.tolist(), dimension=out.shape[1])


@router.post("/v1/embed/texts", dependencies=INFER_TEXTS, openapi_extra=documented(EmbedTexts))
async def embed_texts(
    request: Annotated[InferenceRequest[EmbedTexts], Depends(inference_request(EmbedTexts))],
    server: ServerDep,
    response: Response,
) -> Embeddings:
    """Embeddings of texts, unit vectors where the model's similarity is the cosine. `X-Clipft-Truncated` numbers the texts, from 1,
    of which the model's context holds only the beginning."""
    body = request.body
    out = await server.inference.embed_texts(request.model, body.texts, request.is_traffic, body.dimensions)
    response.headers.update(truncated(out.truncated))
    return Embeddings(embeddings=out.vectors.tolist(), dimension=out.vectors.shape[1])


@router.post("/v1/similarity", dependencies=INFER, openapi_extra=documented(Similarity))
async def similarity(
    request: Annotated[InferenceRequest[Similarity], Depends(inference_request(Similarity))],
    server: ServerDep,
    response: Response,
) -> Similarities:
    """How similar every image is to every text, by the model's own similarity. `X-Clipft-Truncated` as for embeddings."""
    body = request.body
    images = [image.content for image in body.images]
    scores, cut = await server.inference.similarity(request.model, images, body.texts, request.is_traffic, body.paired)
    response.headers.update(truncated(cut))
    heatmaps = await server.inference.explain_texts(request.model, images, body.texts) if body.explain else None
    return Similarities(similarity=scores.tolist(), heatmaps=heatmaps)


@router.post("/v1/classify", dependencies=INFER, openapi_extra=documented(Classify))
async def classify(
    request: Annotated[InferenceRequest[Classify], Depends(inference_request(Classify))],
    server: ServerDep,
    response: Response,
) -> Predictions:
    """Zero-shot classes of images, over the domain's prompt templates; for the model's own classes with calibrated probabilities,
    sets that hold the true class at the `coverage` asked for, and a word on images of another kind. `reasons` says what is missing."""
    images = [image.content for image in request.body.images]
    ranking = await server.inference.classify(
        request.model, images, request.answer_id, request.is_traffic, request.body.classes, request.is_pinned
    )
    response.headers.update(ranking.model.headers)  # of the canary, where it answered
    heatmaps = await server.inference.explain_classes(ranking, images) if request.body.explain else None
    return answer(ranking, request.body.coverage, heatmaps)

"""Embeddings as OpenAI's clients ask for them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from clipft_tasks.contracts.serving import Embedding, EmbeddingList, Usage

from ..embedding_request import EmbeddingsRequest
from ..embeddings import check_encoding, embed_parts, encoded
from ..request_parsing import documented
from ..security import INFER
from ..server import ServerDep
from .inference import InferenceRequest, inference_request, truncated

router = APIRouter()


@router.post("/v1/embeddings", dependencies=INFER, openapi_extra=documented(EmbeddingsRequest, has_form=False))
async def embeddings(
    request: Annotated[InferenceRequest[EmbeddingsRequest], Depends(inference_request(EmbeddingsRequest))],
    server: ServerDep,
    response: Response,
) -> EmbeddingList:
    """Embeddings of texts and images, mixed, in their order: what the clients of OpenAI, LangChain and LlamaIndex ask for.

    Images are data: URIs, in `input` or as `image_url` in `messages`. `dimensions` is one of those that the model was trained for.
    """
    body, model = request.body, request.model
    check_encoding(model, body.encoding_format)
    done = await embed_parts(server.inference, model, body.parts, request.is_traffic, body.dimensions)
    response.headers.update(truncated(done.truncated))
    return EmbeddingList(
        data=[Embedding(index=n, embedding=e) for n, e in enumerate(encoded(done.vectors, body.encoding_format))],
        model=f"{model.domain}@{model.version}",
        usage=Usage(prompt_tokens=done.tokens, total_tokens=done.tokens),
    )

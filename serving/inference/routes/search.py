"""Search over images of one's own, by words or by an image."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends

from clipft_tasks.contracts.search import SearchResults

from ..request_parsing import documented
from ..schemas import Search
from ..search_indexes import results
from ..security import INFER
from ..server import ServerDep
from .inference import InferenceRequest, inference_request

router = APIRouter()


@router.post("/v1/search", dependencies=INFER, openapi_extra=documented(Search, has_form=False))
async def search(
    request: Annotated[InferenceRequest[Search], Depends(inference_request(Search))], server: ServerDep
) -> SearchResults:
    """The images of an index (`clipft index build`) that are most similar to a text or an image, by the model's own similarity.

    404 where the domain has no index; 409 where there is one of another version only: its embeddings cannot be compared.
    """
    model, body = request.model, request.body
    index = await asyncio.to_thread(server.search.get, model.domain, model.version)
    if body.text is not None:
        found = (await server.inference.embed_texts(model, [body.text], request.is_traffic)).vectors
    else:
        assert body.image is not None
        found = await server.inference.embed_images(model, [body.image.content], request.is_traffic)
    return results(index, await asyncio.to_thread(index.search, found[0], body.limit, body.labels))

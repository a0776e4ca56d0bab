"""Many items in one request, as NDJSON."""

import uuid
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from clipft_tasks.spec.form import JsonSchema

from .. import certainty
from ..bulk import MEDIA_TYPE, Answer, Answers, BulkResponse, Lines
from ..embedding_request import Encoding
from ..embeddings import check_encoding, embed_parts, encoded
from ..errors import RequestRejectedError
from ..loaded_model import LoadedModel
from ..middleware import count_for
from ..security import Rule, Scope, caller_of, is_internal
from ..server import Server, ServerDep
from ..window_memory import ANSWER

router = APIRouter(dependencies=[Depends(Rule(Scope.INFER, streams=True, is_inference=True))])
LINES: JsonSchema = {
    "requestBody": {
        "required": True,
        "content": {
            MEDIA_TYPE: {
                "schema": {"type": "string"},
                "example": '{"id": "a", "text": "a cell"}\n{"id": "b", "image": "data:…"}\n',
            }
        },
    }
}
ANSWERS: dict[int | str, JsonSchema] = {
    200: {
        "description": "A line for each line with something in it, in order: `cursor`, `id` and the answer, or `error`. The last one has `done`, "
        "`items`, `errors`, and `error` where it ended before the body did: ask again with `cursor` then.",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}

Domain = Annotated[str, Query(max_length=64, description="whose model answers; may be left out while only one domain is live")]
Version = Annotated[
    str, Query(pattern=r"^([1-9][0-9]{0,8})?$", description="which version must answer; 409 where it is not live")
]
Cursor = Annotated[int, Query(ge=0, le=10**12, description="lines at the beginning that were answered before")]


@router.post("/v1/bulk/embeddings", openapi_extra=LINES, responses=ANSWERS, response_class=Response)
async def embeddings(
    request: Request,
    server: ServerDep,
    domain: Domain = "",
    version: Version = "",
    cursor: Cursor = 0,
    encoding_format: Encoding | None = None,
    dimensions: Annotated[int | None, Query(gt=0)] = None,
) -> Response:
    """Embeddings of texts and images, a JSON object a line: `{"id": …, "text": …}` or `{"id": …, "image": "data:…"}`."""
    model = _model(request, server, domain, version)
    check_encoding(model, encoding_format)
    server.inference.check_dimensions(model, dimensions)
    is_traffic = not is_internal(request)

    async def answer(parts: Sequence[str | bytes]) -> list[Answer]:
        done = await embed_parts(server.inference, model, parts, is_traffic, dimensions)
        cut = set(done.truncated)
        rows = encoded(done.vectors, encoding_format)
        return [{"embedding": row} | ({"truncated": True} if n in cut else {}) for n, row in enumerate(rows, 1)]

    return _respond(request, server, model, cursor, answer)


@router.post("/v1/bulk/classify", openapi_extra=LINES, responses=ANSWERS, response_class=Response)
async def classify(
    request: Request,
    server: ServerDep,
    domain: Domain = "",
    version: Version = "",
    cursor: Cursor = 0,
    classes: Annotated[list[str] | None, Query(alias="class", max_length=100)] = None,
) -> Response:
    """Classes of images, a JSON object a line: `{"id": …, "image": "data:…"}`. `answer_id` and `index` are for feedback."""
    model, is_traffic = _model(request, server, domain, version), not is_internal(request)

    async def answer(parts: Sequence[str | bytes]) -> list[Answer]:
        images = [part for part in parts if isinstance(part, bytes)]
        if len(images) < len(parts):
            raise RequestRejectedError(422, "A text cannot be classified: send an `image`.", "malformed")
        answer_id = uuid.uuid4().hex
        ANSWER.set(answer_id)
        ranking = await server.inference.classify(model, images, answer_id, is_traffic, classes, is_pinned=True)
        named: dict[str, object] = {} if classes else {"answer_id": answer_id}
        said = certainty.answer(ranking, None)
        claims = {"calibrated": said.calibrated, "coverage": said.coverage}
        found = [one.to_json() | claims for one in said.predictions]
        return [one | (named | {"index": n} if named else {}) for n, one in enumerate(found)]

    return _respond(request, server, model, cursor, answer)


def _model(request: Request, server: Server, domain: str, version: str) -> LoadedModel:
    model = server.inference.find_model(domain, version or request.headers.get("x-clipft-model-version", ""))
    count_for(request, model.domain)
    return model


def _respond(request: Request, server: Server, model: LoadedModel, cursor: int, answer: Answers) -> BulkResponse:
    admission, caller = server.admission, caller_of(request)
    lines = Lines(admission.longest_line, cursor)
    return BulkResponse(admission, lines, answer, lambda: server.keys.check(caller, Scope.INFER), model.headers)

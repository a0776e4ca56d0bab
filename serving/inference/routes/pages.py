"""The pages for people: the playground, and the API's documentation. Both work where there is no internet, and both keep to the strict
policy that every answer names (`middleware`): no script or style stands in a page itself.
"""

import mimetypes
from pathlib import Path

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import HTMLResponse

FOLDER = Path(__file__).parents[1]
STATIC = {path.name: path.read_bytes() for path in (FOLDER / "static").iterdir() if path.is_file()}
router = APIRouter(include_in_schema=False)


@router.get("/")
async def playground() -> HTMLResponse:
    return HTMLResponse((FOLDER / "playground.html").read_text("utf-8"))


@router.get("/docs")
async def documentation() -> HTMLResponse:
    return HTMLResponse((FOLDER / "api.html").read_text("utf-8"))


@router.get("/static/{name}")
async def static(name: str) -> Response:
    """Scripts and styles of the pages."""
    if name not in STATIC:
        raise HTTPException(404, "There is no such file.")
    return Response(STATIC[name], media_type=mimetypes.guess_type(name)[0], headers={"Cache-Control": "no-cache"})

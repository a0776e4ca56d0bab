"""The pages for people: the playground, and the API's documentation. Both work where there is no internet."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

FOLDER = Path(__file__).parents[1]
# A browser asks nobody but this server, whatever a page or an answer in it says.
OWN = "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; base-uri 'none'"
router = APIRouter(include_in_schema=False)


@router.get("/")
async def playground() -> HTMLResponse:
    return _page("playground.html")


@router.get("/docs")
async def documentation() -> HTMLResponse:
    return _page("api.html")


def _page(name: str) -> HTMLResponse:
    return HTMLResponse((FOLDER / name).read_text("utf-8"), headers={"Content-Security-Policy": OWN})

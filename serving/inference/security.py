"""Who may change the server's state, or see what others sent it."""

import hmac

from fastapi import Depends, HTTPException, Request

from clipft_tasks.core.settings import settings

INTERNAL = "x-clipft-internal"


def _token() -> bytes:
    token = settings().server_token
    return token.get_secret_value().encode() if token else b""


def shows_token(request: Request) -> bool:
    """Whether a request shows the server's token; none does where the server has none."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    return bool(_token()) and scheme.lower() == "bearer" and hmac.compare_digest(shown.strip().encode(), _token())


async def require_token(request: Request) -> None:
    """Only who shows the server's token. Raises HTTPException: 403 where the server has none, 401 for any other."""
    if not _token():
        raise HTTPException(403, "This server was started without CLIPFT_SERVER_TOKEN, so what needs the token is closed.")
    if not shows_token(request):
        raise HTTPException(401, "Show the server's token as `Authorization: Bearer …`.", {"WWW-Authenticate": "Bearer"})


TOKEN_REQUIRED = [Depends(require_token)]


def is_internal(request: Request) -> bool:
    """Whether the pipeline itself is asking: what it asks is no traffic, so it is neither watched nor kept.

    The header alone says nothing: otherwise any caller could stay out of the windows.
    """
    return INTERNAL in request.headers and shows_token(request)

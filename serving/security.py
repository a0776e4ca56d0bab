"""Who may change the server's state, or see what others sent it."""

import hmac

from fastapi import HTTPException, Request

from clipft_tasks.settings import settings


async def authorised(request: Request) -> None:
    """Only who shows the server's token."""
    token = settings().server_token
    if token is None or not token.get_secret_value():
        raise HTTPException(403, "This server was started without CLIPFT_SERVER_TOKEN, so nobody may change its models.")
    shown = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(shown.encode(), token.get_secret_value().encode()):
        raise HTTPException(401, "Show the server's token as `Authorization: Bearer …`.", {"WWW-Authenticate": "Bearer"})

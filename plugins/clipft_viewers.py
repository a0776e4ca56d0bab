"""Who may only look changes nothing: refused before anything of the request is read.

Airflow asks each route's own question, and some routes look at a body first, so that junk is answered with 400 or 500.
"""

import json
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.requests import Request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOOKING = ("GET", "HEAD", "OPTIONS")
OWN = ("/list", "/favorite", "/unfavorite")  # lists of several things are asked for by POST; favorites are a person's own
OTHERS = ("/execution/", "/edge_worker/", "/auth/")  # of tasks and workers, which are no people, and of whoever logs in
REFUSAL = json.dumps({"detail": "A viewer may look, and change nothing."}).encode()


class ViewersLook:
    """Middleware of Airflow's API server."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and scope["method"] not in LOOKING and await _is_viewers(Request(scope)):
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})
            return
        await self.app(scope, receive, send)


async def _is_viewers(request: Request) -> bool:
    # Only the API server has these at hand; a plugin is loaded by every program of Airflow.
    from airflow.api_fastapi.auth.managers.base_auth_manager import COOKIE_NAME_JWT_TOKEN
    from airflow.api_fastapi.core_api.security import resolve_user_from_token

    path = request.url.path
    if path.startswith(OTHERS) or path.endswith(OWN):
        return False
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    shown = token if kind.lower() == "bearer" else request.cookies.get(COOKIE_NAME_JWT_TOKEN, "")
    try:
        user = await resolve_user_from_token(shown)
    except HTTPException:  # nobody whom Airflow knows: each route refuses, or has a token of its own
        return False
    return str(getattr(user, "role", "")).lower() == "viewer"

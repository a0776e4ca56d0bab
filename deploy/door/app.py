"""The door: people pass by the team's password."""

import base64
import hmac
import os

from fastapi import FastAPI, Request, Response


def create_app() -> FastAPI:
    app = FastAPI(openapi_url=None)
    people = f"{os.environ['CLIPFT_TEAM_USER']}:{os.environ['CLIPFT_TEAM_PASSWORD']}".encode()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/jwks")
    def jwks() -> dict[str, list[str]]:
        return {"keys": []}

    @app.api_route("/auth/{what}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
    def auth(what: str, request: Request) -> Response:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        try:
            known = scheme.lower() == "basic" and hmac.compare_digest(base64.b64decode(shown), people)
        except ValueError:
            known = False
        if known and what in ("mlflow", "data"):
            return Response(status_code=204)
        return Response(status_code=401, headers={"WWW-Authenticate": 'Basic realm="clipft"'})

    return app

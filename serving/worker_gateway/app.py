"""The worker gateway as a service: `/auth/*` for the reverse proxy, `/v1/*` for workers, `/admin/*` for the operator, `/jwks` for
Airflow.

The reverse proxy asks `/auth/edge|mlflow|data` before it lets a request through; what the gateway answers is what the caller sees.
A worker's secret opens these three and nothing else. To Airflow the gateway vouches for it with a signature of its own, so the
installation's real token secret never leaves the control plane, and who is revoked here is out at once.
"""

from fastapi import FastAPI

from .authentication import Gateway
from .body_limit import BodyLimit
from .errors import add_error_handler
from .routes import forward_auth, health, operator, workers
from .settings import GatewaySettings


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """The app. Raises ValueError when a secret is too short."""
    app = FastAPI(title="clipft worker gateway", docs_url=None, redoc_url=None, openapi_url=None)
    gateway = app.state.gateway = Gateway.of(settings)
    app.add_middleware(BodyLimit)
    add_error_handler(app)
    for module in (forward_auth, workers, operator, health):
        app.include_router(module.router)
    if gateway.settings.tuning_url:
        from .routes import studies  # optuna takes a second

        app.include_router(studies.router_for(gateway.settings.tuning_url))
    return app

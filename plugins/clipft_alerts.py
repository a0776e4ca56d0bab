"""The alert callback: Alertmanager's webhook, answered inside Airflow's API server.

It is level-triggered: an alert only starts `clipft_drift_watch` for its domain, and that run looks for itself whether the domain
drifts. So what comes late, twice or out of order does no harm. A repeated delivery finds the run that its first one started.
"""

import asyncio
import hashlib
import hmac

from clipft_drift import PrometheusAlert
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipft_tasks.contracts.drift import DriftWatchRequest
from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names

DAG = "clipft_drift_watch"
MOST_BYTES = 2 * 2**20


class AlertmanagerMessage(BaseModel):
    """Alertmanager's webhook format, version 4."""

    model_config = ConfigDict(extra="ignore")
    version: str = "4"
    alerts: list[PrometheusAlert] = Field(max_length=10_000)


class CallbackResult(BaseModel):
    """The runs started, those that an earlier delivery had started, and how many alerts were passed over (resolved, or of no
    known domain)."""

    started: list[str]
    known: list[str]
    passed_over: int


async def authorized(request: Request) -> None:
    """Only who shows CLIPFT_ALERT_TOKEN; plugin routes get no login from Airflow."""
    token = settings().alert_token
    if token is None or not token.get_secret_value():
        raise HTTPException(403, "This Airflow runs without CLIPFT_ALERT_TOKEN, so no alert may call back.")
    shown = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(shown.encode(), token.get_secret_value().encode()):
        raise HTTPException(401, "Show the alert token as `Authorization: Bearer …`.", {"WWW-Authenticate": "Bearer"})


app = FastAPI(title="clipft alerts", docs_url=None, redoc_url=None, openapi_url=None)


async def read(request: Request) -> AlertmanagerMessage:
    """The body, only of who is authorized, and no more of it than MOST_BYTES."""
    too_much = HTTPException(413, f"More than {MOST_BYTES:,} bytes.")
    if int(request.headers.get("content-length") or 0) > MOST_BYTES:
        raise too_much
    body = b""
    async for part in request.stream():
        if len(body) + len(part) > MOST_BYTES:
            raise too_much
        body += part
    try:
        return AlertmanagerMessage.model_validate_json(body)
    except ValidationError as error:
        raise HTTPException(422, error.errors(include_url=False, include_context=False, include_input=False)) from None


@app.post("/alerts", dependencies=[Depends(authorized)])
async def alerts(request: Request) -> CallbackResult:
    """Start one `clipft_drift_watch` for each domain that fires."""
    message = await read(request)
    firing: dict[str, list[PrometheusAlert]] = {}
    for alert in message.alerts:
        if alert.domain in domain_names():
            firing.setdefault(alert.domain, []).append(alert)
    started: list[str] = []
    known: list[str] = []
    for domain, found in sorted(firing.items()):
        identity = sorted({f"{a.fingerprint or sorted(a.labels.items())}@{a.since}" for a in found})
        run = f"alert__{domain}__{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"
        (started if await asyncio.to_thread(_start, run, domain) else known).append(run)
    passed_over = len(message.alerts) - sum(map(len, firing.values()))
    return CallbackResult(started=started, known=known, passed_over=passed_over)


def _start(run: str, domain: str) -> bool:
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagNotFound, DagRunAlreadyExists
    from airflow.utils.types import DagRunTriggeredByType

    conf = DriftWatchRequest(domains=[domain]).model_dump(mode="json", exclude_unset=True)
    try:
        trigger_dag(DAG, run_id=run, conf=conf, triggered_by=DagRunTriggeredByType.REST_API)
    except DagRunAlreadyExists:
        return False
    except DagNotFound:
        raise HTTPException(503, f"{DAG} is not there yet; try again.", {"Retry-After": "10"}) from None
    return True

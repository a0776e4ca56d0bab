"""The page "Models" in Airflow: what each domain serves, how it fares, and buttons that ask Airflow as the person at the page."""

import time
from pathlib import Path
from typing import Any

import httpx
from airflow.api_fastapi.core_api.security import GetUserDep
from clipft_drift import from_prometheus
from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from clipft_tasks.domains import domain_names, get_domain
from clipft_tasks.settings import settings

HOUR, STEP = 3600, 60
PAGE = Path(__file__).with_name("models.html")
router = APIRouter()


@router.get("/models", response_class=HTMLResponse)
def page(user: GetUserDep) -> str:
    """The page itself; its figures come from `/models.json`."""
    return PAGE.read_text("utf-8")


@router.get("/models.json")
def models(user: GetUserDep) -> dict[str, Any]:
    """Everything that the page shows. What cannot be reached is named in `problems`, and the rest is shown all the same."""
    problems: list[str] = []
    alerts, lines = _prometheus(problems)
    return {
        "domains": [_domain(name, alerts, lines, problems) for name in domain_names()],
        "mlflow": settings().mlflow_ui,
        "problems": sorted(set(problems)),
    }


def _domain(name: str, alerts: list[dict[str, Any]], lines: dict[str, list[float]], problems: list[str]) -> dict[str, Any]:
    from clipft_tasks import tracking

    found: dict[str, Any] = {
        "name": name,
        "title": get_domain(name).title,
        "versions": {},
        "history": [],
        "breaker": "unknown",
        "incident": [],
    }
    try:
        model = _registered(name)
        if model is None:
            return found
        for alias in ("champion", "challenger", "previous"):
            if number := model.aliases.get(alias):
                found["versions"][alias] = _version(tracking.client().get_model_version(model.name, number))
        state = tracking.incidents(name)
        found["breaker"] = state.breaker(time.time())
        found["failures"] = state.failures
        found["incident"] = state.incident.causes if state.incident else []
        found["history"] = state.history[::-1][:5]
    except Exception as error:  # a page about many things must not fail for one of them
        problems.append(f"MLflow: {error}"[:300])
    found["alerts"] = [a for a in alerts if a["domain"] == name]
    found["sparkline"] = lines.get(name, [])
    if found["versions"]:
        found["drift"] = _drift(name, problems)
    return found


def _registered(domain: str) -> Any:
    from clipft_tasks import tracking

    name = tracking.model_name(domain)
    return next(iter(tracking.client().search_registered_models(f"name = '{name}'")), None)


def _version(version: Any) -> dict[str, Any]:
    tags = version.tags
    scores = {k.removeprefix("clipft.score."): float(v) for k, v in tags.items() if k.startswith("clipft.score.")}
    return {
        "number": str(version.version),
        "dataset": tags.get("clipft.dataset", ""),
        "metric": tags.get("clipft.metric", "").replace("_", " "),
        "scores": dict(sorted(scores.items(), key=lambda kv: int(kv[0]))),
        "dag_run": tags.get("clipft.dag_run", ""),
        "run_id": str(version.run_id),
        "link": f"{settings().mlflow_ui}/#/models/{version.name}/versions/{version.version}",
        "since": version.creation_timestamp,
    }


def _drift(domain: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        answer = httpx.get(f"{settings().server_url}/v1/drift/{domain}", timeout=3)
        return dict(answer.json()) if answer.is_success else None
    except httpx.HTTPError as error:
        problems.append(f"The server does not answer: {error}"[:300])
        return None


def _prometheus(problems: list[str]) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Breaches that fire, and the worst signal of each domain over the last hour."""
    if not settings().prometheus_url:
        return [], {}
    try:
        with httpx.Client(base_url=settings().prometheus_url, timeout=3) as http:
            alerts = from_prometheus(http.get("/api/v1/alerts").raise_for_status().json()["data"]["alerts"])
            now = time.time()
            query = {"query": "max by (domain) (clipft:drift_ratio)", "start": now - HOUR, "end": now, "step": STEP}
            series = http.get("/api/v1/query_range", params=query).raise_for_status().json()["data"]["result"]
        return alerts, {s["metric"]["domain"]: [v for _, text in s["values"] if (v := float(text)) == v] for s in series}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"Prometheus does not answer: {error}"[:300])
        return [], {}

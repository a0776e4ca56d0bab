"""The page "Models" in Airflow: what each domain serves, how it fares, and buttons that ask Airflow as the person at the page."""

import time
from pathlib import Path
from typing import Any

import httpx
from airflow.api_fastapi.core_api.security import GetUserDep
from clipft_drift import from_prometheus
from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from clipft_tasks.core.settings import settings
from clipft_tasks.domains import domain_names, get_domain

HOUR, STEP = 3600, 60
PAGE = Path(__file__).with_name("models.html")
router = APIRouter()


@router.get("/models", response_class=HTMLResponse)
def page(user: GetUserDep) -> str:
    """The page itself; its metrics come from `/models.json`."""
    return PAGE.read_text("utf-8")


@router.get("/models.json")
def models(user: GetUserDep) -> dict[str, Any]:
    """Everything that the page shows. What cannot be reached is named in `problems`, and the rest is shown all the same."""
    problems: list[str] = []
    alerts, lines = _prometheus(problems)
    registered = _registered(problems)
    domains = [
        {
            "name": name,
            "title": get_domain(name).title,
            "alerts": [{"causes": a["causes"], "ratio": a["ratio"]} for a in alerts if a["domain"] == name],
            "sparkline": lines.get(name, []),
            "drift": _drift(name, problems) if registered is None or name in registered else None,
            **(_UNKNOWN if registered is None else registered.get(name, _NONE)),
        }
        for name in domain_names()
    ]
    return {"domains": domains, "problems": sorted(set(problems))}


_NONE: dict[str, Any] = {"versions": {}, "breaker": "closed", "incident": [], "watched": "", "report": "", "history": []}
_UNKNOWN = _NONE | {"versions": None, "breaker": "unknown"}


def _registered(problems: list[str]) -> dict[str, dict[str, Any]] | None:
    """Versions and incidents of each domain that has a model; None when the registry cannot be asked."""
    from clipft_tasks import tracking
    from clipft_tasks.drift import incident_store

    found = {}
    try:
        for model in tracking.client().search_registered_models("name LIKE 'clipft-%'"):
            name = model.name.removeprefix("clipft-")
            aliases = [a for a in ("champion", "challenger", "previous") if a in model.aliases]
            state = incident_store.load(name)
            incident = state.incident
            found[name] = {
                "versions": {a: _version(tracking.client().get_model_version(model.name, model.aliases[a])) for a in aliases},
                "breaker": state.breaker(time.time()),
                "incident": incident.causes if incident and not incident.quiet else [],
                "watched": incident.watch.version if incident and incident.watch and incident.quiet else "",
                "report": _report(name),
                "history": [{k: past[k] for k in ("closed", "causes", "outcome")} for past in state.history[::-1][:5]],
            }
    except Exception as error:  # a page about many things must not fail for one of them
        problems.append(f"MLflow: {error}"[:300])
        return None
    return found


def _report(domain: str) -> str:
    """The address of the domain's newest drift report; "" before the first."""
    from clipft_tasks import tracking

    there = tracking.client()
    experiment = there.get_experiment_by_name(f"clipft-{domain}-drift")
    found = there.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1) if experiment else []
    return tracking.run_link(found[0], "artifacts/drift.html") if found else ""


def _version(version: Any) -> dict[str, Any]:
    tags = version.tags
    scores = {k.removeprefix("clipft.score."): float(v) for k, v in tags.items() if k.startswith("clipft.score.")}
    return {
        "number": str(version.version),
        "dataset": tags.get("clipft.dataset", ""),
        "metric": tags.get("clipft.metric", "").replace("_", " "),
        "scores": dict(sorted(scores.items(), key=lambda kv: int(kv[0]))),
        "dag_run": tags.get("clipft.dag_run", ""),
        "link": f"{settings().mlflow_ui}/#/models/{version.name}/versions/{version.version}",
    }


def _drift(domain: str, problems: list[str]) -> dict[str, Any] | None:
    try:
        answer = httpx.get(f"{settings().server_url}/v1/drift/{domain}", timeout=3)
        return (
            {k: answer.json()[k] for k in ("drift", "values", "images", "feedback", "baseline")} if answer.is_success else None
        )
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

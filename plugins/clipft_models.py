"""The page "Models" in Airflow: what each domain serves, how it fares, and buttons that ask Airflow as the person at the page."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import httpx
from airflow.api_fastapi.core_api.security import GetUserDep
from clipft_drift import from_prometheus
from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from clipft_tasks.contracts.drift import BaselineAccuracy, Breaker, DriftAlert, DriftSnapshot, Outcome
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import is_url, settings
from clipft_tasks.domains import domain_names, get_domain
from clipft_tasks.server.client import ServerClient, ServerRefusalError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

HOUR, STEP = 3600, 60
PAGE = Path(__file__).with_name("models.html")
router = APIRouter()


class VersionCard(BaseModel):
    """A version with an alias. created: seconds since 1970. scores, start_scores: by image size; the latter are the start model's.
    cost: energy and price of its training, an estimate."""

    number: str
    created: float
    dataset: str
    metric: str
    scores: dict[str, float]
    start_scores: dict[str, float]
    dag_run: str
    cost: str
    link: str


class PastIncident(BaseModel):
    closed: float
    signals: list[str]
    outcome: Outcome


class FiringAlert(BaseModel):
    signals: list[str]
    ratio: float


class LiveDrift(BaseModel):
    """What the server says of the champion's window."""

    drift: dict[str, float]
    values: dict[str, float]
    images: int
    feedback: int
    baseline: BaselineAccuracy


class RegistryCard(BaseModel):
    """What the registry knows of a domain.

    Attributes:
        versions: by alias; None where the registry cannot be asked.
        incident: signals of the one that is being handled. probation: the version that is on it.
        report: address of the newest drift report.
    """

    versions: dict[str, VersionCard] | None = {}
    breaker: Breaker | Literal["unknown"] = "closed"
    incident: list[str] = []
    probation: str = ""
    report: str = ""
    history: list[PastIncident] = []


class NewestDataset(BaseModel):
    """The newest dataset version of a domain. created: seconds since 1970."""

    tag: str
    created: float


class DomainCard(RegistryCard):
    """Everything that the page shows of a domain. sparkline: the worst ratio over the last hour."""

    name: str
    title: str
    dataset: NewestDataset | None
    alerts: list[FiringAlert]
    sparkline: list[float]
    drift: LiveDrift | None


class ModelsPage(BaseModel):
    """playground: the server's own page. datasets_known: whether this host has the repository of data sets."""

    domains: list[DomainCard]
    playground: str
    datasets_known: bool
    problems: list[str]


@router.get("/models", response_class=HTMLResponse)
def page(user: GetUserDep) -> str:
    """The page itself; its metrics come from `/models.json`."""
    return PAGE.read_text("utf-8")


@router.get("/models.json")
def models(user: GetUserDep) -> ModelsPage:
    """Everything that the page shows. What cannot be reached is named in `problems`, and the rest is shown all the same."""
    problems: list[str] = []
    alerts, lines = _prometheus(problems)
    registered = _registered(problems)
    unknown = RegistryCard(versions=None, breaker="unknown")
    datasets = _datasets(problems)
    domains = [
        DomainCard(
            **dict(unknown if registered is None else registered.get(name, RegistryCard())),
            name=name,
            title=get_domain(name).title,
            dataset=(datasets or {}).get(name),
            alerts=[FiringAlert(signals=a.signals, ratio=a.ratio) for a in alerts if a.domain == name],
            sparkline=lines.get(name, []),
            drift=_drift(name, problems) if registered is None or name in registered else None,
        )
        for name in domain_names()
    ]
    return ModelsPage(
        domains=domains,
        playground=settings().server_ui or settings().server_url,
        datasets_known=datasets is not None,
        problems=sorted(set(problems)),
    )


def _datasets(problems: list[str]) -> dict[str, NewestDataset] | None:
    """The newest dataset version of each domain, as this host's copy of the repository has it; None where there is no copy.

    It is neither made nor brought up to date: a page changes nothing.
    """
    from clipft_tasks.data import repository

    if not (settings().working_copy / ".git").exists():
        return None if is_url(settings().datasets) else {}
    try:
        tags = repository.git(settings().working_copy, "tag", "--list", "--format", "%(refname:strip=2) %(creatordate:unix)")
    except (ClipftError, TransientError) as error:
        problems.append(f"Data sets: {error}"[:300])
        return None
    found: dict[str, NewestDataset] = {}
    for tag, created in sorted((line.rsplit(" ", 1) for line in tags.splitlines()), key=lambda row: float(row[1])):
        found[tag.partition("/")[0]] = NewestDataset(tag=tag, created=float(created))
    return found


def _registered(problems: list[str]) -> dict[str, RegistryCard] | None:
    """Versions and incidents of each domain that has a model; None when the registry cannot be asked."""
    from clipft_tasks import tracking
    from clipft_tasks.drift import incident_store, incidents

    found = {}
    try:
        for model in tracking.client().search_registered_models("name LIKE 'clipft-%'"):
            name = model.name.removeprefix("clipft-")
            aliases = [a for a in ("champion", "challenger", "previous") if a in model.aliases]
            state = incident_store.load(name)
            incident = state.incident
            probation = incident.probation if incident and incident.on_probation else None
            found[name] = RegistryCard(
                versions={a: _version(tracking.client().get_model_version(model.name, model.aliases[a])) for a in aliases},
                breaker=incidents.breaker(state, time.time()),
                incident=incident.signals if incident and not probation else [],
                probation=probation.version if probation else "",
                report=_report(name),
                history=[
                    PastIncident(closed=past.closed, signals=past.signals, outcome=past.outcome)
                    for past in state.history[::-1][:5]
                ],
            )
    except Exception as error:  # a page about many things must not fail for one of them
        problems.append(f"MLflow: {error}"[:300])
        return None
    return found


def _report(domain: str) -> str:
    """The address of the domain's newest drift report; "" before the first."""
    from clipft_tasks import tracking

    client = tracking.client()
    experiment = client.get_experiment_by_name(f"clipft-{domain}-drift")
    found = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1) if experiment else []
    return tracking.run_link(found[0], "artifacts/drift.html") if found else ""


def _version(version: "ModelVersion") -> VersionCard:
    from clipft_tasks import tracking

    tags = version.tags
    return VersionCard(
        number=str(version.version),
        created=version.creation_timestamp / 1000,
        dataset=tags.get("clipft.dataset", ""),
        metric=tags.get("clipft.metric", "").replace("_", " "),
        scores=_by_size(tags, "clipft.score."),
        start_scores=_by_size(tags, "clipft.start_score."),
        dag_run=tags.get("clipft.dag_run", ""),
        cost=tags.get("clipft.cost", ""),
        link=tracking.version_link(version),
    )


def _by_size(tags: Mapping[str, str], prefix: str) -> dict[str, float]:
    found = {key.removeprefix(prefix): float(value) for key, value in tags.items() if key.startswith(prefix)}
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _drift(domain: str, problems: list[str]) -> LiveDrift | None:
    try:
        snapshot = ServerClient(timeout=3).drift(domain)
    except ServerRefusalError:  # nothing of the domain is measured
        return None
    except (TransientError, ClipftError) as error:
        problems.append(f"The server does not answer: {error}"[:300])
        return None
    return _live(snapshot)


def _live(snapshot: DriftSnapshot) -> LiveDrift:
    return LiveDrift(**{name: getattr(snapshot, name) for name in LiveDrift.model_fields})


def _prometheus(problems: list[str]) -> tuple[list[DriftAlert], dict[str, list[float]]]:
    """Alerts that fire, and the worst signal of each domain over the last hour."""
    if not settings().prometheus_url:
        return [], {}
    try:
        with httpx.Client(base_url=settings().prometheus_url, timeout=3) as http:
            alerts = from_prometheus(http.get("/api/v1/alerts").raise_for_status().json()["data"]["alerts"])
            now = time.time()
            query: dict[str, str | float] = {
                "query": "max by (domain) (clipft:drift_ratio)",
                "start": now - HOUR,
                "end": now,
                "step": STEP,
            }
            series = http.get("/api/v1/query_range", params=query).raise_for_status().json()["data"]["result"]
        return alerts, {s["metric"]["domain"]: [v for _, text in s["values"] if (v := float(text)) == v] for s in series}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        problems.append(f"Prometheus does not answer: {error}"[:300])
        return [], {}

"""Drift alerts: from Prometheus, or from the server's own metrics where there is none; a trigger and a sensor on both.

PrometheusDriftTrigger   polls; ends at the first alerts (a sensor), or goes on with an event for each one (an asset watcher)
PrometheusDriftSensor    waits for alerts without holding a worker

All of it is level-triggered: who acts on an alert asks again what is over its limit now.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import httpx
from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowSensorTimeout, AirflowSkipException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from clipft_tasks.contracts.drift import ERRORS, AlertSource, DriftAlert
from clipft_tasks.core.settings import settings
from clipft_tasks.drift.thresholds import ERROR_RATIO, RATIO

ALERTS = ("ClipftDrift", "ClipftDriftSevere", "ClipftAccuracyLow", "ClipftErrors")
POLL = 6.0  # seconds; longer than the server takes between two measurements, so that two polls see two of them
REPEAT = 900.0  # seconds after which an alert that lasts is an event once more
TIMEOUT = 10
AlertJson: TypeAlias = dict[str, Any]  # a `DriftAlert` in events and XCom


class PrometheusAlert(BaseModel):
    """An alert as Prometheus lists it (state, activeAt, value) and as Alertmanager sends it (status, startsAt)."""

    model_config = ConfigDict(extra="ignore")

    labels: dict[str, str]
    state: str = Field(validation_alias=AliasChoices("state", "status"))
    since: str = Field("", validation_alias=AliasChoices("activeAt", "startsAt"))
    value: float = 0.0
    fingerprint: str = ""

    @field_validator("value", mode="before")
    @classmethod
    def _number(cls, value: object) -> float:
        try:
            return float(str(value))
        except ValueError:
            return 0.0

    @property
    def domain(self) -> str:
        """The domain that it fires for; "" while it does not fire, or for none."""
        return self.labels.get("domain", "") if self.state == "firing" else ""


def from_prometheus(listed: Iterable[object]) -> list[DriftAlert]:
    """The alerts of Prometheus' answer to /api/v1/alerts: what fires of ours, by domain and version."""
    found: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    for one in listed:
        try:
            alert = PrometheusAlert.model_validate(one)
        except ValidationError:  # somebody else's
            continue
        name, value = alert.labels.get("alertname"), alert.value
        if not alert.domain or name not in ALERTS:
            continue
        signals = found.setdefault((alert.domain, alert.labels.get("version", "")), {})
        signal = alert.labels.get("signal", "")
        if name == "ClipftErrors":
            signal, value = ERRORS, value / ERROR_RATIO
        ratio, since = signals.get(signal, (0.0, alert.since))
        signals[signal] = (max(ratio, value), min(since, alert.since))
    return [
        _alert(domain, version, {s: r for s, (r, _) in signals.items()}, min(at for _, at in signals.values()), "prometheus")
        for (domain, version), signals in sorted(found.items())
    ]


def from_metrics(text: str) -> list[DriftAlert]:
    """The alerts of the server's own /metrics: signals over their limit at this moment."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name == "clipft_drift_ratio":
            for sample in family.samples:
                if sample.value > RATIO:
                    key = (sample.labels["domain"], sample.labels["version"])
                    found.setdefault(key, {})[sample.labels["signal"]] = sample.value
    return [_alert(domain, version, signals, "", "server") for (domain, version), signals in sorted(found.items())]


def _alert(domain: str, version: str, ratios: dict[str, float], since: str, source: AlertSource) -> DriftAlert:
    signals = sorted(ratios, key=lambda s: -ratios[s])
    given = {"domain": domain, "version": version, "signals": signals, "since": since, "source": source}
    return DriftAlert.model_validate(given | {"ratio": round(ratios[signals[0]], 2)})


async def fetch_alerts(prometheus: str, server: str) -> list[DriftAlert] | None:
    """What is over its limit now; None when neither can be asked.

    Args:
        prometheus: address; "" asks the server alone. One that does not answer is passed over for the server.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT) as http:
        if prometheus:
            try:
                answer = await http.get(f"{prometheus}/api/v1/alerts")
                answer.raise_for_status()
                return from_prometheus(answer.json()["data"]["alerts"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                pass
        try:
            answer = await http.get(f"{server}/metrics")
            answer.raise_for_status()
            return from_metrics(answer.text)
        except (httpx.HTTPError, ValueError, KeyError):
            return None


class AlertPoller:
    """Poll after poll. Prometheus' rules ask twice before an alert fires; of the server's own metrics this does.

    Attributes:
        pending: whether the last poll saw something for the first time, which one more would settle.
    """

    def __init__(self, prometheus: str, server: str) -> None:
        self.prometheus, self.server, self.pending = prometheus, server, False
        self._before: set[tuple[str, str, str]] = set()

    async def __call__(self) -> list[DriftAlert] | None:
        """The alerts of now that count; None when nobody can be asked."""
        found = await fetch_alerts(self.prometheus, self.server)
        seen = {(a.domain, a.version, s) for a in found or [] if a.source == "server" for s in a.signals}
        before, self._before = self._before, seen
        self.pending = bool(seen - before)
        return None if found is None else [a for alert in found if (a := _lasting(alert, before))]


def _lasting(alert: DriftAlert, before: set[tuple[str, str, str]]) -> DriftAlert | None:
    """The alert with the signals that count: Prometheus' all, the server's that the poll before saw too."""
    if alert.source == "prometheus":
        return alert
    signals = [s for s in alert.signals if (alert.domain, alert.version, s) in before]
    return alert.model_copy(update={"signals": signals}) if signals else None


class PrometheusDriftTrigger(BaseEventTrigger):
    """Polls for alerts.

    Args:
        prometheus, server: addresses, see `fetch_alerts`.
        domains: whom to watch; empty: all.
        once: end with the first alerts (as a list); else an event for each alert when it is new, has grown by a signal, or has
            lasted another REPEAT seconds.
    """

    def __init__(
        self, prometheus: str, server: str, domains: list[str] | None = None, once: bool = False, poll: float = POLL
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's own
        self.prometheus, self.server, self.domains, self.once, self.poll = prometheus, server, domains or [], once, poll
        self._known: dict[tuple[str, str], tuple[float, set[str]]] = {}  # when it was an event last, and with which signals

    def serialize(self) -> tuple[str, dict[str, object]]:
        kept = {k: getattr(self, k) for k in ("prometheus", "server", "domains", "once", "poll")}
        return "clipft_drift.PrometheusDriftTrigger", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for alerts in self._polled():
            for event in self._events(alerts):
                yield event
                if self.once:
                    return

    async def _polled(self) -> AsyncIterator[list[DriftAlert]]:
        poller = AlertPoller(self.prometheus, self.server)
        while True:
            yield [a for a in await poller() or [] if not self.domains or a.domain in self.domains]
            await asyncio.sleep(self.poll)

    def _events(self, alerts: Sequence[DriftAlert]) -> list[TriggerEvent]:
        if self.once:
            return [TriggerEvent([a.to_json() for a in alerts])] if alerts else []
        known, events, now = self._known, [], time.monotonic()
        for alert in alerts:
            key = (alert.domain, alert.version)
            at, signals = known.get(key, (-REPEAT, set()))
            if not set(alert.signals) <= signals or now - at >= REPEAT:
                known[key] = (now, signals | set(alert.signals))
                events.append(TriggerEvent(alert.to_json()))
        for key in known.keys() - {(a.domain, a.version) for a in alerts}:
            if now - known[key][0] >= REPEAT:
                del known[key]
        return events


class PrometheusDriftSensor(BaseSensorOperator):
    """Waits until a domain drifts; returns the alerts. Skips what follows when there was none in time; fails when nobody can be asked.

    Args:
        domains: whom to watch; empty: all. Templated.
        wait_minutes: 0 asks now. Templated.
        poll: seconds between two polls.
    """

    template_fields = ("domains", "wait_minutes")

    def __init__(
        self,
        *,
        domains: Sequence[str] | str | None = None,
        wait_minutes: float | str | None = 0,
        poll: float = POLL,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.domains, self.wait_minutes, self.poll = domains, wait_minutes, poll

    def execute(self, context: Context) -> list[AlertJson]:
        domains = [d for d in (self.domains or []) if d]
        wait = float(self.wait_minutes or 0)
        found = [a for a in self._asked(may_be_away=wait > 0) if not domains or a.domain in domains]
        if not found and not wait:
            raise AirflowSkipException("Nothing drifts now.")
        if not found:
            trigger = PrometheusDriftTrigger(
                settings().prometheus_url, settings().server_url, domains, once=True, poll=self.poll
            )
            self.defer(trigger=trigger, method_name="resume", timeout=timedelta(minutes=wait))
        return self._logged(found)

    def _asked(self, may_be_away: bool) -> list[DriftAlert]:
        """What drifts now. Raises: AirflowException where nobody can say so, which is not the same as nothing."""
        if (found := asyncio.run(self._now())) is None:
            said = f"Neither Prometheus ({settings().prometheus_url or 'none set'}) nor the server answers"
            if not may_be_away:
                raise AirflowException(f"{said}, so whether anything drifts is not known. `clipft doctor` says what is away.")
            self.log.warning("%s.", said)
        return found or []

    async def _now(self) -> list[DriftAlert] | None:
        poller = AlertPoller(settings().prometheus_url, settings().server_url)
        found = await poller()
        if poller.pending:
            await asyncio.sleep(self.poll)
            found = await poller()
        return found

    def resume_execution(self, next_method: str, next_kwargs: dict[str, object] | None, context: Context) -> list[AlertJson]:
        try:
            found: list[AlertJson] = super().resume_execution(next_method, next_kwargs, context)
            return found
        except AirflowSensorTimeout:
            self._asked(may_be_away=False)
            raise AirflowSkipException(f"Nothing drifted in {self.wait_minutes} minutes.") from None

    def resume(self, context: Context, event: list[AlertJson]) -> list[AlertJson]:
        return self._logged([DriftAlert.model_validate(alert) for alert in event])

    def _logged(self, alerts: Sequence[DriftAlert]) -> list[AlertJson]:
        """What XCom holds of the alerts."""
        for a in alerts:
            said = "%s version %s: %s, %.1f times the limit (%s)"
            self.log.info(said, a.domain, a.version, ", ".join(a.signals), a.ratio, a.source)
        return [a.to_json() for a in alerts]

"""Where drift alarms come from: Prometheus, or the server's own metrics where there is none; a trigger and a sensor on both.

PrometheusDriftTrigger   polls; ends at the first breach (a sensor), or goes on and tells of each one (an asset watcher)
PrometheusDriftSensor    waits for a breach without holding a worker
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import httpx
from airflow.sdk import BaseSensorOperator
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from clipft_tasks.core.settings import settings

ALERTS = ("ClipftDrift", "ClipftDriftSevere", "ClipftAccuracyLow", "ClipftErrors")
ERRORS = 0.05  # share of failing requests above which ClipftErrors fires; it carries no signal and no version
POLL = 6.0  # longer than the server takes between two measurements, so that two looks see two of them
AGAIN = 900.0  # seconds after which a breach that lasts is told of once more
TIMEOUT = 10

Breach = dict[str, Any]  # domain, version, causes (worst first), ratio, since, source


def from_prometheus(alerts: Iterable[dict[str, Any]]) -> list[Breach]:
    """Breaches of Prometheus' answer to /api/v1/alerts: what fires of ours, by domain and version."""
    found: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    for alert in alerts:
        labels = alert.get("labels", {})
        if alert.get("state") == "firing" and labels.get("alertname") in ALERTS and labels.get("domain"):
            signals = found.setdefault((labels["domain"], labels.get("version", "")), {})
            signal, value, at = labels.get("signal", ""), _number(alert.get("value")), alert.get("activeAt", "")
            if labels["alertname"] == "ClipftErrors":
                signal, value = "errors", value / ERRORS
            ratio, since = signals.get(signal, (0.0, at))
            signals[signal] = (max(ratio, value), min(since, at))
    return [
        _breach(domain, version, {s: r for s, (r, _) in signals.items()}, min(at for _, at in signals.values()), "prometheus")
        for (domain, version), signals in sorted(found.items())
    ]


def from_metrics(text: str) -> list[Breach]:
    """Breaches of the server's own /metrics: signals over their limit at this moment."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[tuple[str, str], dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        if family.name == "clipft_drift_ratio":
            for sample in family.samples:
                if sample.value > 1:
                    key = (sample.labels["domain"], sample.labels["version"])
                    found.setdefault(key, {})[sample.labels["signal"]] = sample.value
    return [_breach(d, v, signals, "", "server") for (d, v), signals in sorted(found.items())]


def _breach(domain: str, version: str, signals: dict[str, float], since: str, source: str) -> Breach:
    causes = sorted(signals, key=lambda s: -signals[s])
    return {
        "domain": domain,
        "version": version,
        "causes": causes,
        "ratio": round(signals[causes[0]], 2),
        "since": since,
        "source": source,
    }


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


async def look(prometheus: str, server: str) -> list[Breach] | None:
    """What is breached now; None when neither can be asked.

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


class Looks:
    """Look after look. Prometheus' rules ask twice before an alert fires; of the server's own metrics this does.

    Attributes:
        unsure: whether the last look saw something for the first time, which one more look would settle.
    """

    def __init__(self, prometheus: str, server: str) -> None:
        self.prometheus, self.server, self.unsure = prometheus, server, False
        self._before: set[tuple[str, str, str]] = set()

    async def __call__(self) -> list[Breach] | None:
        """The breaches of now that count; None when nobody can be asked."""
        found = await look(self.prometheus, self.server)
        seen = {(b["domain"], b["version"], c) for b in found or [] if b["source"] == "server" for c in b["causes"]}
        before, self._before = self._before, seen
        self.unsure = bool(seen - before)
        if found is None:
            return None
        lasting = [
            b
            if b["source"] == "prometheus"
            else b | {"causes": [c for c in b["causes"] if (b["domain"], b["version"], c) in before]}
            for b in found
        ]
        return [b for b in lasting if b["causes"]]


class PrometheusDriftTrigger(BaseEventTrigger):
    """Polls for breaches.

    Args:
        prometheus, server: addresses, see `look`.
        domains: whom to watch; empty: all.
        once: end with the first breaches (as a list); else tell of each breach (one event each) when it is new, has grown by a
            cause, or has lasted another AGAIN seconds.
    """

    def __init__(
        self, prometheus: str, server: str, domains: list[str] | None = None, once: bool = False, poll: float = POLL
    ) -> None:
        super().__init__()
        self.prometheus, self.server, self.domains, self.once, self.poll = prometheus, server, domains or [], once, poll
        self._known: dict[tuple[str, str], tuple[float, set[str]]] = {}  # what was told: when, and which causes

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kept = {k: getattr(self, k) for k in ("prometheus", "server", "domains", "once", "poll")}
        return "clipft_drift.PrometheusDriftTrigger", kept

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async for breaches in self._polled():
            for event in self._told(breaches):
                yield event
                if self.once:
                    return

    async def _polled(self) -> AsyncIterator[list[Breach]]:
        looks = Looks(self.prometheus, self.server)
        while True:
            yield [b for b in await looks() or [] if not self.domains or b["domain"] in self.domains]
            await asyncio.sleep(self.poll)

    def _told(self, breaches: list[Breach]) -> list[TriggerEvent]:
        if self.once:
            return [TriggerEvent(breaches)] if breaches else []
        known, events, now = self._known, [], time.monotonic()
        for breach in breaches:
            key = (breach["domain"], breach["version"])
            at, causes = known.get(key, (-AGAIN, set()))
            if not set(breach["causes"]) <= causes or now - at >= AGAIN:
                known[key] = (now, causes | set(breach["causes"]))
                events.append(TriggerEvent(breach))
        for key in known.keys() - {(b["domain"], b["version"]) for b in breaches}:
            if now - known[key][0] >= AGAIN:
                del known[key]
        return events


class PrometheusDriftSensor(BaseSensorOperator):
    """Waits until a domain drifts; returns the breaches. Skips what follows when there was none in time.

    Args:
        domains: whom to watch; empty: all. Templated.
        wait_minutes: 0 looks now. Templated.
        poll: seconds between two looks.
    """

    template_fields = ("domains", "wait_minutes")

    def __init__(self, *, domains: Any = None, wait_minutes: Any = 0, poll: float = POLL, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.domains, self.wait_minutes, self.poll = domains, wait_minutes, poll

    def execute(self, context: Any) -> Any:
        domains = [d for d in (self.domains or []) if d]
        found = asyncio.run(self._now())
        if found is None:
            self.log.warning("Neither Prometheus (%s) nor the server answers.", settings().prometheus_url or "none set")
        found = [b for b in found or [] if not domains or b["domain"] in domains]
        if found:
            return self._say(found)
        wait = float(self.wait_minutes or 0)
        if not wait:
            raise AirflowSkipException("Nothing drifts now.")
        trigger = PrometheusDriftTrigger(settings().prometheus_url, settings().server_url, domains, once=True, poll=self.poll)
        self.defer(trigger=trigger, method_name="resume", timeout=timedelta(minutes=wait))

    async def _now(self) -> list[Breach] | None:
        looks = Looks(settings().prometheus_url, settings().server_url)
        found = await looks()
        if looks.unsure:
            await asyncio.sleep(self.poll)
            found = await looks()
        return found

    def resume_execution(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().resume_execution(*args, **kwargs)
        except AirflowSensorTimeout:
            raise AirflowSkipException(f"Nothing drifted in {self.wait_minutes} minutes.") from None

    def resume(self, context: Any, event: Any) -> Any:
        return self._say(event)

    def _say(self, breaches: list[Breach]) -> list[Breach]:
        for b in breaches:
            self.log.info(
                "%s version %s: %s, %.1f times the limit (%s)",
                b["domain"],
                b["version"],
                ", ".join(b["causes"]),
                b["ratio"],
                b["source"],
            )
        return breaches

"""`make demo-drift`, after `make demo`: another kind of solar cell arrives, and the loop closes.

Polycrystalline cells are played against the live server, whose model knows monocrystalline ones. The metrics move, the alert
fires, the suggestion is shown and approved (over REST, as a person would), the model re-adapts, and the new one takes over under
load. Ends with one table, kept as `.clipft/demo/drift.json`. At most ten minutes on two cores.
"""

import base64
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import cast

import httpx
from rich.panel import Panel
from rich.table import Table

from clipft_tasks.contracts.drift import DriftSnapshot
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.ops.airflow_client import Airflow
from deploy.local import stack
from deploy.local.environment import address, airflow_client, environment

from .follow import Summary, console, follow

DOMAIN = "industrial"
HELD_OUT = 150  # images of each kind that are only ever asked about
STREAM = 320  # polycrystalline images played as traffic, judged as an inspector would
USUAL = 96  # monocrystalline images played first
PATIENCE = 120  # seconds for the alarm
Cell = tuple[bytes, str]  # image, true class


def main() -> None:
    """Play the shift and show what came of it. Raises ClipftError with the words of whatever failed."""
    began = time.monotonic()
    stack.up()
    os.environ.update({k: v for k, v in environment().items() if k.startswith("CLIPFT_")})
    settings.cache_clear()
    airflow, server = airflow_client(), _Server()
    before = server.live(60)
    if before is None:
        raise ClipftError(
            "make demo-drift", f"no model of {DOMAIN} is live", "Run `make demo` first.", code="demo.nothing_live"
        )
    _start_afresh()
    with server.keeping():
        summary = _play(airflow, server, before)
    summary["seconds"]["total"] = round(time.monotonic() - began, 1)
    path = settings().folder("demo") / "drift.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")
    _show(summary, path)


def _play(airflow: Airflow, server: "_Server", before: str) -> Summary:
    """The shift, from the first image of the new kind to the answers of the new version; what came of it."""
    mono, stream, poly = _cells()

    console.rule("before: monocrystalline cells")
    scores = {"before": {"mono": server.accuracy(mono), "poly": None}}
    for _ in server.play(mono[:USUAL]):
        pass
    server.verdicts.clear()
    _metrics(server)

    console.rule("the shift: polycrystalline cells arrive")
    drifted = fired = None
    drifted_at = 0
    until = time.monotonic() + PATIENCE
    known = {r["dag_run_id"] for r in airflow.runs("clipft_readapt")}
    run = ""
    for count in server.play(stream):
        if drifted is None and count % 16 == 0:
            worst = server.drift().worst
            console.print(f"[dim]{count} images: {worst.signal or 'nothing'} at {worst.ratio:.1f} times its limit[/]")
            if worst.ratio > 1:
                drifted, drifted_at = time.monotonic(), count
                console.print(f"[bold]Drift[/] after {count} images: {worst.signal}.")
        if drifted and not run and count % 8 == 0:
            run = _new_run(airflow, known)
            fired = fired or (time.monotonic() if run else None)
    scores["during"] = {"mono": None, "poly": sum(server.verdicts) / len(server.verdicts)}
    while not run:
        if time.monotonic() > until:
            raise ClipftError(
                "the alarm",
                f"no re-adaptation started within {PATIENCE} s",
                f"See {address('airflow')}/dags/clipft_drift_watch.",
                code="demo.no_alarm",
            )
        time.sleep(0.5)
        drifted = drifted or time.monotonic()
        run = _new_run(airflow, known)
        fired = fired or (time.monotonic() if run else None)
    _metrics(server)

    console.rule("the answer: clipft_readapt")
    approved: list[str] = []
    load = _Load(server, mono + poly)
    with load:
        follow(airflow, "clipft_readapt", run, lambda: _approve(airflow, run, approved))
    suggestion = airflow.result("clipft_readapt", run, "suggest")
    if suggestion["action"] != "readapt":
        raise ClipftError(
            "the suggestion",
            f"it was {suggestion['action']}: {suggestion['why']}",
            "See the drift report.",
            code="demo.not_suggested",
        )
    after = server.live()

    console.rule("after: both kinds")
    scores["after"] = {"mono": server.accuracy(mono), "poly": server.accuracy(poly)}
    outcome = airflow.result("clipft_readapt", run, "close")
    first, promoted = load.first_answer(after or ""), _ended(airflow, "clipft_finetune", "promote")
    return {
        "scores": scores,
        "versions": {"before": before, "after": after},
        "requests_until_drift": drifted_at,
        "seconds": {
            "drift_to_run": round((fired or 0) - (drifted or 0), 1),
            "promotion_to_first_answer": round(first - promoted, 1) if promoted and first else None,
        },
        "failed_requests": load.failed,
        "requests_under_load": load.count,
        "suggestion": {k: suggestion[k] for k in ("kind", "action", "why", "expected_gain", "minutes", "labels")},
        "outcome": outcome["outcome"],
        "links": {
            "drift report": suggestion["links"]["Drift report"],
            "Airflow run": f"{address('airflow')}/dags/clipft_readapt/runs/{run}",
        },
    }


class _Server:
    """The live server, as an application and its inspectors use it."""

    def __init__(self) -> None:
        token = settings().server_token
        headers = {"Authorization": f"Bearer {token.get_secret_value() if token else ''}"}
        self.http = httpx.Client(base_url=address("server"), timeout=60)
        self.own = httpx.Client(base_url=address("server"), timeout=60, headers=headers)
        self.verdicts: list[bool] = []

    def live(self, seconds: float = 0) -> str | None:
        """The version that answers; a server that was just started is given some seconds to load it."""
        until = time.monotonic() + seconds
        while not (version := self.http.get("/readyz").json()["live"].get(DOMAIN)) and time.monotonic() < until:
            time.sleep(0.5)
        return str(version) if version else None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep every image for as long as the block lasts."""
        before = self._keep(1.0)
        try:
            yield
        finally:
            self._keep(before)

    def _keep(self, share: float | None) -> float | None:
        answer = self.own.put(f"/v1/captures/{DOMAIN}", json={"share": share})
        answer.raise_for_status()
        return cast("float | None", answer.json()["before"])

    def drift(self) -> DriftSnapshot:
        return DriftSnapshot.from_json(self.own.get(f"/v1/drift/{DOMAIN}").json())

    def classify(self, image: bytes, internal: bool = False) -> httpx.Response:
        """The answer to an image; an internal one does not count in the window."""
        body = {"domain": DOMAIN, "images": {"base64": base64.b64encode(image).decode()}}
        who, headers = (self.own, {"X-Clipft-Internal": "1"}) if internal else (self.http, {})
        answer = who.post("/v1/classify", json=body, headers=headers)
        answer.raise_for_status()
        return answer

    def accuracy(self, cells: list[Cell]) -> float:
        """Balanced accuracy over some cells, outside the window."""
        right: dict[str, list[bool]] = {}
        for image, label in cells:
            said = self.classify(image, internal=True).json()["predictions"][0]["label"]
            right.setdefault(label, []).append(said == label)
        return sum(sum(r) / len(r) for r in right.values()) / len(right)

    def play(self, cells: list[Cell]) -> Iterator[int]:
        """Send cells one by one as traffic, each judged as an inspector would; after each, its number."""
        for count, (image, label) in enumerate(cells, 1):
            answer = self.classify(image)
            self.verdicts.append(answer.json()["predictions"][0]["label"] == label)
            body = {"answer_id": answer.headers["x-clipft-answer-id"], "label": label}
            self.own.post("/v1/feedback", json=body).raise_for_status()
            yield count


class _Load:
    """Traffic that goes on while models are swapped."""

    def __init__(self, server: _Server, cells: list[Cell]) -> None:
        self.server, self.cells = server, cells
        self.count = self.failed = 0
        self.answers: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=90)

    def first_answer(self, version: str) -> float | None:
        """When a version answered first, seconds since 1970."""
        return next((at for at, v in self.answers if v == version), None)

    def _run(self) -> None:
        random.seed(0)
        while not self._stop.wait(1.0):
            self.count += 1
            try:
                answer = self.server.classify(random.choice(self.cells)[0], internal=True)
                self.answers.append((time.time(), answer.headers["x-clipft-model-version"]))
            except httpx.HTTPError:
                self.failed += 1


def _start_afresh() -> None:
    """A cool-down or a probation of an earlier demo does not count."""
    from clipft_tasks.drift import incident_store, incidents

    state = incident_store.update(DOMAIN, incidents.reset)
    if state.incident:
        what = f"an incident of {DOMAIN} ({', '.join(state.incident.signals)})"
        raise ClipftError(
            what, "it is being handled", f"Finish {address('airflow')}/dags/clipft_readapt first.", code="demo.busy"
        )


def _cells() -> tuple[list[Cell], list[Cell], list[Cell]]:
    """Monocrystalline cells that training never saw; polycrystalline traffic; polycrystalline cells of other modules."""
    from clipft_tasks.data import versioning
    from clipft_tasks.data.readers import open_source
    from clipft_tasks.spec import DataSpec

    data = versioning.fetch(versioning.find("", DOMAIN))
    first = versioning.fetch(versioning.find(f"{DOMAIN}/v1", DOMAIN)) if data.version.number > 1 else data
    mono = [(first.image_bytes(row), str(row.label)) for row in first.split("test").itertuples()]
    rows = list(open_source("elpv:poly", DataSpec()).rows())
    modules = sorted({row.group for row in rows})
    random.Random(0).shuffle(modules)
    kept = set(modules[: len(modules) // 3])
    held_out = [(row.image_bytes(), row.label) for row in rows if row.group in kept]
    stream = [(row.image_bytes(), row.label) for row in rows if row.group not in kept]
    for cells in (mono, held_out, stream):
        random.Random(0).shuffle(cells)
    return mono[:HELD_OUT], stream[:STREAM], held_out[:HELD_OUT]


def _new_run(airflow: Airflow, known: set[str]) -> str:
    """The re-adaptation that the alarm started, once it runs."""
    found = [r for r in airflow.runs("clipft_readapt") if r["dag_run_id"] not in known and r["state"] == "running"]
    if found:
        console.print(f"[bold]clipft_readapt runs[/]: {found[0]['dag_run_id']}")
    return str(found[0]["dag_run_id"]) if found else ""


def _approve(airflow: Airflow, run: str, approved: list[str]) -> None:
    waiting = [t for t in airflow.tasks("clipft_readapt", run) if t["task_id"] == "approve" and t["state"] == "awaiting_input"]
    if waiting and not approved:
        console.print("[bold]Approved[/], as a person would in Airflow's form.")
        airflow.answer("clipft_readapt", run, "approve", "Approve")
        approved.append(run)


def _ended(airflow: Airflow, dag: str, task: str) -> float | None:
    """When a task of the newest run of a DAG ended, seconds since 1970."""
    newest = airflow.runs(dag)[0]["dag_run_id"]
    end = next((t["end_date"] for t in airflow.tasks(dag, newest) if t["task_id"] == task), None)
    return datetime.fromisoformat(end).timestamp() if end else None


def _metrics(server: _Server) -> None:
    seen = server.drift()
    shown = ", ".join(f"{k} {v:.2f}" for k, v in sorted(seen.drift.items(), key=lambda kv: -kv[1])[:6])
    console.print(f"Window of {seen.images} images, version {seen.version}: {shown or 'too small to say anything'}")


def _show(summary: Summary, path: Path) -> None:
    table = Table(title="balanced accuracy through the live server")
    for name in ("", "monocrystalline", "polycrystalline"):
        table.add_column(name, justify="right")
    for when, row in summary["scores"].items():
        table.add_row(when, *("" if v is None else f"{v:.3f}" for v in (row["mono"], row["poly"])))
    seconds, versions = summary["seconds"], summary["versions"]
    told = [
        f"[bold]Drift[/]       after {summary['requests_until_drift']} images of the new kind",
        f"[bold]Answer[/]      {summary['suggestion']['action']}: {summary['suggestion']['why']}",
        f"[bold]Versions[/]    {versions['before']} → {versions['after']}; {summary['failed_requests']} of {summary['requests_under_load']} requests failed meanwhile",
        f"[bold]Seconds[/]     drift to running DAG {seconds['drift_to_run']}, promotion to first answer {seconds['promotion_to_first_answer']}, in all {seconds['total']:.0f}",
        "",
        f"Drift report  {summary['links']['drift report']}",
        f"Airflow run   {summary['links']['Airflow run']}",
        f"Summary       {path}",
    ]
    console.print()
    console.print(table)
    console.print(Panel("\n".join(told), title="clipft demo-drift"))


if __name__ == "__main__":
    try:
        main()
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")

"""The second half of the loop: other images arrive, which is seen, approved and learned."""

import base64
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from ...core.errors import ClipftError, TransientError
from ...core.settings import settings
from ...server.client import ServerClient
from ..airflow_client import Airflow
from . import made
from .runs import DagRun, Report
from .strikes import Strike

WATCH, READAPT = "clipft_drift_watch", "clipft_readapt"
PATIENCE = 300.0  # seconds until drift is seen, or acted on


def readapt(images: Path, strikes: Sequence[Strike], report: Report) -> None:
    """Play images to the live server until they drift, and follow what comes of it, struck as drawn.

    Args:
        images: a folder a class.
    """
    known = set(_runs(READAPT))
    play(images)
    if not _drifts():
        report.problems.append(f"the server saw no drift within {PATIENCE:.0f} s")
        return
    watched = DagRun(WATCH, {"domains": [made.DOMAIN], "cool_down_minutes": 0, "wait_minutes": 5}, report)
    watched.until_over([s for s in strikes if s.dag == WATCH])
    until = time.monotonic() + PATIENCE
    while not (begun := [run for run in _runs(READAPT) if run not in known]):
        if time.monotonic() > until:
            report.problems.append(f"no {READAPT} was started within {PATIENCE:.0f} s")
            return
        time.sleep(1)
    DagRun(READAPT, {"domain": made.DOMAIN}, report, begun[-1]).until_over([s for s in strikes if s.dag == READAPT])
    if len(begun := [run for run in _runs(READAPT) if run.startswith("drift__")]) != 1:
        report.problems.append(f"one drift started {len(begun)} re-adaptations: {', '.join(begun)}")


def play(images: Path) -> None:
    """Send each image as a client would, and say what it shows."""
    token = settings().server_token
    headers = {"Authorization": f"Bearer {token.get_secret_value() if token else ''}"}
    with httpx.Client(base_url=settings().server_url, timeout=60) as http:
        for path in sorted(images.glob("*/*.png"), key=lambda p: p.name):
            body = {"domain": made.DOMAIN, "images": {"base64": base64.b64encode(path.read_bytes()).decode()}}
            answer = http.post("/v1/classify", json=body).raise_for_status()
            said = {"answer_id": answer.headers["x-clipft-answer-id"], "label": path.parent.name}
            http.post("/v1/feedback", json=said, headers=headers).raise_for_status()


def _drifts() -> bool:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(TransientError, ClipftError):
            if ServerClient().drift(made.DOMAIN).worst.ratio > 1:
                return True
        time.sleep(1)
    return False


def _runs(dag: str) -> list[str]:
    """The ids of a DAG's runs, newest first; [] while Airflow is away."""
    with suppress(TransientError):
        return [run["dag_run_id"] for run in Airflow.of_settings(30).runs(dag)]
    return []

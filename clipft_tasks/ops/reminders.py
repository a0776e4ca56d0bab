"""Approvals that are about to lapse."""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from ..contracts.notice import Notice
from .airflow_client import Airflow

UNANSWERED = "Unanswered after {:g} h means"  # stands in the text of every approval that lapses
HOURS = re.compile(r"Unanswered after ([\d.]+) h means")
SHARE, MOST = 0.25, 2.0  # of its time an approval is told of once more, at most so many hours before its end


def lapsing(airflow: Airflow, since: datetime, until: datetime, pages: str) -> list[Notice]:
    """Approvals whose last quarter (or last two hours) began in this time and that nobody answered.

    Asked for one stretch of time after the other, each is told of once.

    Args:
        pages: address of Airflow's pages, for people.
    Raises: TransientError, ClipftError: Airflow cannot be asked.
    """
    waiting = airflow.call("GET", "/dags/~/dagRuns/~/hitlDetails?response_received=false&state=awaiting_input&limit=100")
    return list(_due(waiting["hitl_details"], since, until, pages))


def _due(waiting: Iterable[Mapping[str, Any]], since: datetime, until: datetime, url: str) -> Iterable[Notice]:
    for asked in waiting:
        if not (match := HOURS.search(asked["body"] or "")):
            continue
        hours, task = float(match[1]), asked["task_instance"]
        lapses = datetime.fromisoformat(asked["created_at"]) + timedelta(hours=hours)
        if since < lapses - timedelta(hours=min(MOST, SHARE * hours)) <= until:
            yield Notice(
                event="approval_lapses",
                title=f"About to lapse: {asked['subject']}",
                text=f"Nobody has answered. At {lapses:%Y-%m-%d %H:%M} UTC it counts as Reject.",
                link=f"{url}/dags/{task['dag_id']}/runs/{task['dag_run_id']}/tasks/{task['task_id']}/required_actions",
            )

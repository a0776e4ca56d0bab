"""Callbacks of Airflow that tell people: a run failed, an approval is wanted, a run takes much longer than usual."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Context
from airflow.sdk.bases.notifier import BaseNotifier

from clipft_tasks.contracts.notice import Event, Notice
from clipft_tasks.ops import notify

FAILED = "clipft_error"  # XCom key of the sentence that ended a task
log = logging.getLogger("clipft")
QUIET = ("SubRun",)  # the run that such a task waits for tells by itself


def task_failed(context: Context) -> None:
    """A task failed for good, and its run with it."""
    ti, task = context["ti"], context["task"]
    if task.task_type not in QUIET:
        why = context.get("exception") or "it was ended from outside, or lost"
        _tell("run_failed", f"{ti.dag_id} failed at {ti.task_id}{_about(_domain(context))}", str(why), context)


class ApprovalWanted(BaseNotifier):
    """Says that a run waits for a person; for operators of Airflow that ask one."""

    def __call__(self, *args: Context) -> None:
        """As Airflow's own, without templates, of which there are none; nothing that goes wrong here ends the task."""
        try:
            self.notify(args[0])
        except Exception as error:
            log.warning("Nobody was told that an approval is wanted: %r", error)

    def notify(self, context: Context) -> None:
        asked: Any = context["task"]
        _tell("approval_wanted", asked.subject, asked.body or "", context)


async def run_is_late(context: Mapping[str, Any] | None = None) -> None:
    """A run has not ended long after the time that the runs before took. Called in the triggerer."""
    run = (context or {}).get("dag_run", {})
    domain = str((run.get("conf") or {}).get("domain", ""))
    title = f"{run.get('dag_id', 'a run')} takes much longer than usual{_about(domain)}"
    text = f"Run {run.get('dag_run_id', '')} began at {run.get('start_date', '')}."
    await asyncio.to_thread(notify.tell, Notice(event="run_late", title=title, text=text, domain=domain))


def _tell(event: Event, title: str, text: str, context: Context) -> None:
    link = getattr(context["ti"], "log_url", "")
    notify.tell(Notice(event=event, title=title, text=text, domain=_domain(context), link=link))


def _domain(context: Context) -> str:
    return str(context["params"].get("domain") or "")


def _about(domain: str) -> str:
    return f" ({domain})" if domain else ""

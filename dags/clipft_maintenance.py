"""
### Backup, then what may go

Every Sunday at 04:00 UTC: a backup into a new folder below *folder*, looked at byte by byte, and only then `clipft gc --yes`. What is kept, and for
how long, is on the page *Operating*; old backups are never removed. Needs the databases and the data sets: it runs on the control plane.

Paused when first seen: choose a folder on another disk (the form's *folder*, or the default `backups` under home), then switch it on.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException
from clipft_dag import DEFAULTS

from clipft_tasks.core.errors import ClipftError


@dag(
    dag_id="clipft_maintenance",
    schedule=CronTriggerTimetable("0 4 * * 0", timezone="UTC"),
    catchup=False,
    is_paused_upon_creation=True,
    default_args=DEFAULTS,
    params={
        "folder": Param(
            None, type=["string", "null"], description="below which each backup gets a folder; empty: backups under home"
        ),
        "clear": Param(True, type="boolean", description="run gc after the backup"),
    },
    tags=["clipft", "care"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_maintenance() -> None:
    @task(doc_md="A backup, and a look at every byte of it.")
    def backup(params: dict[str, Any] | None = None) -> dict[str, Any]:
        from clipft_tasks.core.settings import settings
        from clipft_tasks.ops import backup as backups

        below = Path((params or {}).get("folder") or settings().folder("backups"))
        try:
            place = below / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
            backups.backup(place)
            made, problems = backups.verify(place)
        except ClipftError as error:
            raise AirflowFailException(str(error)) from error
        if problems:
            raise AirflowFailException(f"The backup at {place} is not whole: {problems[0]}")
        return {"folder": str(place), "bytes": made.bytes, "warnings": made.warnings, "not_copied": made.references}

    @task(doc_md="Remove what may go, and say how much space came back.")
    def gc(params: dict[str, Any] | None = None) -> dict[str, Any]:
        from clipft_tasks.ops import garbage_collection

        if not (params or {}).get("clear", True):
            return {}
        try:
            found = garbage_collection.find()
            return {**garbage_collection.clear(found), "left": found.left}
        except ClipftError as error:
            raise AirflowFailException(str(error)) from error

    backup() >> gc()


clipft_maintenance()

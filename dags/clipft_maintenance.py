"""
### Backup, then what may go

Every Sunday at 04:00 UTC: a backup into a new folder below *folder*, looked at byte by byte, and only then `clipft gc --yes`. What is kept, and for
how long, is on the page *Operating*. What did not change since the backup before takes no space again; `CLIPFT_BACKUPS_KEPT` says how many
backups stay (0: all). Needs the databases and the data sets: it runs on the control plane. Beside that `reconcile`
looks at every domain's champion: whether it was verified, and whether it is what the server answers with.

Paused when first seen: choose a folder on another disk (the form's *folder*, or the default `backups` under home), then switch it on.
"""

from airflow.sdk import CronTriggerTimetable, Param, dag, task
from clipft_dag import LATE, OWN_FORM, Form, StageOutput, options_of, stage

from clipft_tasks.domains import domain_names


@dag(
    dag_id="clipft_maintenance",
    dag_display_name="8 · Maintenance (clipft_maintenance)",
    description="Back everything up every Sunday, then remove what may go.",
    schedule=CronTriggerTimetable("0 4 * * 0", timezone="UTC"),
    catchup=False,
    is_paused_upon_creation=True,
    default_args=OWN_FORM,
    deadline=LATE,
    params={
        "folder": Param(
            None, type=["string", "null"], description="below which each backup gets a folder; empty: backups under home"
        ),
        "clear": Param(True, type="boolean", description="run gc after the backup"),
    },
    tags=["clipft", "maintenance"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_maintenance() -> None:
    @task(doc_md="A backup, and a look at every byte of it.", **options_of("maintenance"))
    def backup(params: Form | None = None) -> StageOutput:
        return stage("maintenance.backup", {}, folder=(params or {}).get("folder") or "")

    @task(doc_md="Remove what may go, and say how much space came back.", **options_of("maintenance"))
    def gc(params: Form | None = None) -> StageOutput:
        return stage("maintenance.collect_garbage", {}) if (params or {}).get("clear", True) else {}

    # It takes nothing of the form, so a wrong field is one red task, and not two.
    @task(pre_execute=None, doc_md="Registry and server in line, in every domain, whatever a run that was cut left behind.")
    def reconcile() -> list[StageOutput]:
        return [stage("reconcile", {"domain": domain}) for domain in domain_names()]

    reconcile()
    backup() >> gc()


clipft_maintenance()

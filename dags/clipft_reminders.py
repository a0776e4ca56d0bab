"""
### Approvals about to lapse

Every quarter of an hour, where `CLIPFT_NOTIFY` names somebody to tell: approvals that nobody answered and whose last quarter
(at most the last two hours) has begun. Each is told of once. Without that setting this DAG has no schedule.
"""

from datetime import UTC, datetime, timedelta

from airflow.sdk import CronTriggerTimetable, dag, get_current_context, task
from clipft_dag import DEFAULTS

from clipft_tasks.core.settings import settings

EVERY = timedelta(minutes=15)


@dag(
    dag_id="clipft_reminders",
    dag_display_name="9 · Reminders (clipft_reminders)",
    description="Say again that an approval waits, before it lapses.",
    schedule=CronTriggerTimetable("*/15 * * * *", timezone="UTC") if settings().notify else None,
    catchup=False,
    default_args=DEFAULTS | {"retries": 2},
    tags=["clipft", "maintenance"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_reminders() -> None:
    @task(doc_md="Who must be told, of which approval.")
    def remind() -> list[str]:
        from clipft_tasks.ops import notify
        from clipft_tasks.ops.airflow_client import Airflow
        from clipft_tasks.ops.reminders import lapsing

        context = get_current_context()
        now, pages = context["dag_run"].run_after or datetime.now(UTC), context["ti"].log_url.partition("/dags/")[0]
        notices = lapsing(Airflow.of_settings(), now - EVERY, now, pages)
        for notice in notices:
            notify.tell(notice)
        return [notice.title for notice in notices]

    remind()


clipft_reminders()

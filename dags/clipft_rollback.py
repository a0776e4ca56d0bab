"""
### One click back

Makes the previous champion of a domain, or a version that you name, champion again, has the server load it, and verifies
its answers. The one that stepped down is kept as `previous`, so a second rollback undoes the first. A version that failed when
it was last live is passed over, unless you name it. While another run changes the domain's champion, this one waits for it.
"""

from airflow.sdk import Param, dag, task
from clipft_dag import LATE, OWN_FORM, ChainTasks, Form, StageOutput, options_of, params, promote_to_verify, stage

from clipft_tasks.stages import chain


@dag(
    dag_id="clipft_rollback",
    dag_display_name="4 · Rollback (clipft_rollback)",
    description="Make the previous champion, or a version that you name, live again.",
    schedule=None,
    catchup=False,
    default_args=OWN_FORM,
    deadline=LATE,
    params={
        **params(only=("domain",)),
        "version": Param(
            None,
            type=["string", "null"],
            pattern=r"^\d+$",
            title="Version",
            description="number of the version to go back to; empty: the one kept as previous",
        ),
    },
    tags=["clipft", "serving"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_rollback() -> None:
    @task(doc_md=chain.ROLLBACK["rollback"].summary, **options_of("rollback"))
    def rollback(params: Form | None = None) -> StageOutput:
        given = params or {}
        return stage("rollback", {"domain": given["domain"]}, version=given["version"] or "")

    tasks = ChainTasks(chain.ROLLBACK, fields=("domain",), rollback=rollback())
    promote_to_verify(tasks)


clipft_rollback()

"""
### One click back

Makes the previous champion of a domain, or a version that you name, champion again, has the server load it, and verifies
its answers. The one that stepped down is kept as `previous`, so a second rollback undoes the first.
"""

from typing import Any

from airflow.sdk import Param, dag, task
from clipft_dag import DEFAULTS, params, stage


@dag(
    dag_id="clipft_rollback",
    schedule=None,
    catchup=False,
    default_args=DEFAULTS,
    params={
        **params(only=("domain",)),
        "version": Param(
            None,
            type=["string", "null"],
            pattern=r"^\d+$",
            title="Version",
            section="What to run",
            description="number of the version to go back to; empty: the one kept as previous",
        ),
    },
    tags=["clipft", "serving"],
    doc_md=__doc__,
    max_active_runs=1,
)
def clipft_rollback() -> None:
    @task(doc_md="Which version; nothing changes yet.")
    def rollback(params: dict[str, Any] | None = None) -> dict[str, Any]:
        given = dict(params or {})
        return stage("rollback", {"domain": given["domain"]}, version=given["version"] or "")

    @task(doc_md="Move the champion alias; the one that steps down is kept as previous.")
    def promote(chosen: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("promote", {"domain": (params or {})["domain"]}, version=chosen["version"])

    @task(doc_md="The server loads it.")
    def deploy(back: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("deploy", {"domain": (params or {})["domain"]}, version=back["version"], previous=back["previous"])

    @task(doc_md="It answers as recorded.")
    def verify(back: dict[str, Any], deployed: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        return stage("verify", {"domain": (params or {})["domain"]}, version=deployed["version"], previous=back["previous"])

    back = promote(rollback())
    verify(back, deploy(back))


clipft_rollback()

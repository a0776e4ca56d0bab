"""Airflow plugin: the alert callback, the page of models, notes of runs, and links from a task to what it made. A stage returns `{"links": {name: url}}`; here they become buttons."""

from typing import TYPE_CHECKING

import clipft_notes
from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperatorLink
from clipft_alerts import app as web
from clipft_models import router as models
from clipft_viewers import ViewersLook

from clipft_tasks.stages import chain

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

web.include_router(models)


class _ReturnedLink(BaseOperatorLink):
    label = ""

    @property
    def name(self) -> str:
        return self.label

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            stored = session.execute(
                XComModel.get_many(
                    key="return_value",
                    run_id=ti_key.run_id,
                    dag_ids=ti_key.dag_id,
                    task_ids=ti_key.task_id,
                    map_indexes=ti_key.map_index,
                )
            ).scalars()
            value = next((XComModel.deserialize_value(row) for row in stored), None)
        links = value.get("links") if isinstance(value, dict) else None
        return str((links or {}).get(self.label, ""))


LINKS = [
    type(name.replace(" ", "") + "Link", (_ReturnedLink,), {"label": name})() for name in chain.links()
]  # Airflow wants a fixed list


class ClipftPlugin(AirflowPlugin):
    """Registers the links for every task (one without an address is not shown), the alert callback and the page of models."""

    name = "clipft"
    fastapi_apps = [{"app": web, "url_prefix": "/clipft", "name": "clipft"}]
    fastapi_root_middlewares = [{"middleware": ViewersLook, "name": "viewers look"}]
    external_views = [{"name": "Models", "href": "/clipft/models", "destination": "nav", "url_route": "clipft-models"}]
    global_operator_extra_links = LINKS
    listeners = [clipft_notes]

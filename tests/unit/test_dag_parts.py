"""What DAG files share: whether a dataset version was announced, and which fields a form has."""

import os
from pathlib import Path

import fixtures.forkserver
import pytest

CODE = """
from types import SimpleNamespace
from airflow.sdk.execution_time.context import InletEventsAccessor
from clipft_dag import announced

class Events(InletEventsAccessor):  # as Airflow hands them on, with events of our own
    def __init__(self, *revisions):
        super().__init__(alias_name="clipft-dataset")
        self.given = [SimpleNamespace(extra=r and {"revision": r}) for r in revisions]
    @property
    def _asset_events(self):
        return self.given
    def _reset_cache(self):
        pass

class Away(Events):
    def __iter__(self):
        raise RuntimeError("the API server does not answer")

assert not announced("b", Events())
assert not announced("b", Events("a"))
assert announced("b", Events("a", None, "b"))
assert not announced("b", Away("b"))
"""


def run_with_plugins(code: str, home: Path) -> None:
    """Run a program as Airflow would, with its plugins to import and a home of its own."""
    plugins = Path(__file__).parents[2] / "plugins"
    environment = os.environ | {"AIRFLOW_HOME": str(home)}
    done = fixtures.forkserver.run(f"import sys; sys.path.insert(0, {str(plugins)!r})\n{code}", environment=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_version_is_announced_until_an_event_tells_of_it(tmp_path):
    run_with_plugins(CODE, tmp_path)


UNKNOWN = """
import runpy
from types import SimpleNamespace
from airflow.sdk.exceptions import AirflowFailException
from clipft_dag import OWN_FORM, declared_only

dag = SimpleNamespace(dag_id="clipft_rollback", params={"domain": None, "version": None})
declared_only({"dag": dag, "params": {"domain": "general", "version": "2"}})
try:
    declared_only({"dag": dag, "params": {"domain": "general", "version": None, "verison": "2"}})
except AirflowFailException as error:
    assert "no field verison" in str(error) and "domain, version" in str(error) and "[form.unknown_field]" in str(error)
else:
    raise AssertionError("it went back to another version than was asked for")

for name in ("rollback", "drift_watch", "retrain", "maintenance"):  # of whose forms no spec is made
    dag = runpy.run_path(f"dags/clipft_{name}.py")[f"clipft_{name}"]()
    for task in dag.tasks:
        hook = task.partial_kwargs.get("pre_execute") if task.is_mapped else task._pre_execute_hook
        assert hook is (None if (name, task.task_id) == ("maintenance", "reconcile") else declared_only), (name, task.task_id)
"""


@pytest.mark.slow
def test_a_field_that_a_form_does_not_have_is_refused_by_name(tmp_path):
    run_with_plugins(UNKNOWN, tmp_path)

"""Whether a dataset version was announced is what Airflow's own events say."""

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


@pytest.mark.slow
def test_a_version_is_announced_until_an_event_tells_of_it(tmp_path):
    plugins = Path(__file__).parents[2] / "plugins"
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path)}
    done = fixtures.forkserver.run(f"import sys; sys.path.insert(0, {str(plugins)!r})\n{CODE}", environment=environment)
    assert done.returncode == 0, done.stderr

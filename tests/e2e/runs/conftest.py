"""An installation for runs of seconds, on made images and a tiny model."""

import pytest

from e2e.conftest import call, speak_with


@pytest.fixture(scope="session")
def airflow(installation):
    """A client of its Airflow, which runs."""
    done = call("deploy.local.stack", "up", seconds=600)
    assert done.returncode == 0, done.stdout[-3000:]
    speak_with(installation)
    return installation.airflow_client()

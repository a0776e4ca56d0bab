"""One team's deployment for every test that needs it."""

import shutil

import pytest
from conftest import write_images, write_tiny

from deploy.compose import secrets
from team import compose, engine

# What a test's machine has less of than a team's host.
SMALL = {
    "CLIPFT_SERVER_REPLICAS": "3",
    "CLIPFT_MLFLOW_WORKERS": "1",
    "CLIPFT_AIRFLOW_API_WORKERS": "1",
    "CLIPFT_LIGHT_TASKS": "3",
}


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory):
    """The profiles core and monitoring with three replicas of the server, healthy; stopped at the end, whatever happened.

    Accelerator tasks run on the host's own executor. `team.sources` holds made images (`/sources` for the tasks).
    """
    if reason := engine.lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("team")
    sources = folder / "sources"
    write_images(sources / "images")
    write_tiny(sources / "tiny")
    folder.chmod(0o755)
    env = compose.dotenv(secrets.content()) | SMALL | {"CLIPFT_SOURCES": str(sources)}
    env |= {"CLIPFT_ACCELERATOR_EXECUTOR": "LocalExecutor", "CLIPFT_ACCELERATOR_QUEUE": "default"}
    made = engine.Team(folder / "engine", env)
    made.sources = sources
    try:
        made.up(1500)  # twenty minutes were seen on a machine that did much else
        yield made
    finally:
        made.down()
        shutil.rmtree(folder / "engine" / "volumes", ignore_errors=True)

"""A whole installation for the end-to-end tests: real Airflow, MLflow, server and Prometheus, on ports and in a home of its own.

Each folder here has one, for its session alone, so that `make test` runs them side by side.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fixtures.ports import free_port

from clipft_tasks.core.settings import settings

PROJECT = Path(__file__).resolve().parents[2]


def call(*command: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run one of the project's programs as a person would, from the project's folder."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=PROJECT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
    )


def token_of(installation, name: str) -> str:
    """What the installation's Airflow knows a person by."""
    body = {"username": name, "password": installation.keep_secrets()[installation.password_of(name)]}
    answer = httpx.post(f"{installation.address('airflow')}/auth/token", json=body, timeout=60)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["access_token"])


def cookies_of(installation, name: str) -> dict[str, object]:
    """What a browser holds in which a person has logged in."""
    cookie = {
        "name": "_token", "value": token_of(installation, name), "domain": "127.0.0.1", "path": "/", "expires": -1,
        "httpOnly": False, "secure": False, "sameSite": "Lax",
    }  # fmt: skip
    return {"cookies": [cookie], "origins": []}


def speak_with(installation) -> None:
    """From here on this process speaks with the installation's own services."""
    os.environ.update({k: v for k, v in installation.environment().items() if k.startswith("CLIPFT_")})
    settings.cache_clear()


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory):
    """The environment of a fresh installation, in this process and its children; stopped at the end, whatever happened."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith(("CLIPFT_", "AIRFLOW"))]:
        del os.environ[name]
    os.environ["CLIPFT_HOME"] = str(tmp_path_factory.mktemp("installation") / "home")
    os.environ["CLIPFT_AIRFLOW_USERS"] = "vera:viewer"
    for program in ("AIRFLOW", "MLFLOW", "SERVER", "PROMETHEUS", "ALERTMANAGER", "STATSD"):
        os.environ[f"CLIPFT_{program}_PORT"] = str(free_port())
    settings.cache_clear()
    from deploy.local import environment

    yield environment
    call("deploy.local.stack", "down", seconds=90)
    os.environ.clear()
    os.environ.update(before)
    settings.cache_clear()

"""Airflow's API server as the embedded stack starts it: two requests that write at once do not wait for each other for ever."""

import os
from pathlib import Path

import fixtures.forkserver
import pytest

CODE = """
import asyncio, sys, threading, time
from deploy.api_server import commit_in_threads

commit_in_threads()
assert not [name for name in sys.modules if name.startswith("airflow.api_fastapi.core_api.routes")]  # they would have the usual one

import httpx
from airflow import settings
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import get_user
from airflow.api_fastapi.logging.decorators import action_logging
from airflow.models.log import Log
from fastapi import Depends, FastAPI

Log.__table__.create(settings.get_engine())
app = FastAPI()
app.dependency_overrides[get_user] = lambda: None
wrote = threading.Event()

@app.post("/task")
def task(session: SessionDep):
    session.add(Log(event="task"))
    session.flush()
    wrote.set()
    time.sleep(0.5)  # until the other one waits for the database

@app.post("/form", dependencies=[Depends(action_logging("form"))])
def form():
    pass

async def both():
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://airflow") as http:
        first = asyncio.create_task(http.post("/task"))
        await asyncio.to_thread(wrote.wait)
        second = await http.post("/form")
        return (await first).status_code, second.status_code

answered = asyncio.run(both())
assert answered == (200, 200), answered
with settings.get_engine().connect() as there:
    assert there.exec_driver_sql("select event from log order by event").scalars().all() == ["form", "task"]
"""


@pytest.mark.slow
def test_a_form_that_is_sent_while_a_task_writes_is_answered(tmp_path: Path):
    environment = os.environ | {
        "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}?timeout=20",
    }  # fmt: skip
    done = fixtures.forkserver.run(CODE, environment=environment)
    assert done.returncode == 0, done.stderr

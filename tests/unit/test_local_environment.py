"""The environment of the embedded stack: who may log in, as what."""

import json
from pathlib import Path

import pytest
from fixtures.errors import refuses
from sqlalchemy import create_engine, make_url

from clipft_tasks.core.settings import settings
from deploy.local.environment import environment, keep_secrets, people


@pytest.fixture(autouse=True)
def own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache_clear()
    monkeypatch.delenv("CLIPFT_AIRFLOW_USERS", raising=False)


def test_one_person_is_admin_and_others_come_with_a_role_and_a_password_that_stays(home, monkeypatch):
    before = keep_secrets()
    assert people() == {"admin": "admin"} and environment()["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin"
    monkeypatch.setenv("CLIPFT_AIRFLOW_USERS", "vera:viewer ann:user")
    env = environment()
    assert env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS"] == "admin:admin,vera:viewer,ann:user"
    file = Path(env["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    known = json.loads(file.read_text())
    assert known.keys() == {"admin", "vera", "ann"} and len(set(known.values())) == 3
    assert file.stat().st_mode & 0o077 == 0 and known["admin"] == before["password"]
    assert json.loads(Path(environment()["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).read_text()) == known


def test_whoever_writes_to_airflows_database_waits_for_another_that_does(home):
    env = environment()
    engine = create_engine(env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    with engine.connect() as there:
        assert there.exec_driver_sql("pragma busy_timeout").scalar() == 60_000
    assert settings().folder("airflow") / "airflow.db" == Path(make_url(env["CLIPFT_AIRFLOW_DB"]).database)


@pytest.mark.parametrize("entry", ["vera", "vera:boss", ":viewer", "admin:viewer", "a,b:viewer"])
def test_who_has_no_role_that_there_is_stops_the_stack_before_it_starts(monkeypatch, entry):
    monkeypatch.setenv("CLIPFT_AIRFLOW_USERS", entry)
    with refuses("stack.invalid_user", entry, "viewer, user, op, admin"):
        environment()

"""`clipft worker …` against a real worker gateway: every check with its line and its way out, and nothing half-joined."""

import os
import plistlib
import re
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from click.testing import CliRunner
from fixtures.gateway import TOKEN, control_plane

from clipft_tasks.cli.main import main
from clipft_tasks.core import versions
from clipft_tasks.core.settings import settings
from clipft_tasks.worker import checks, membership, service


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    with control_plane(tmp_path_factory.mktemp("gateway"), tuning_url="sqlite://") as plane:
        yield plane


@pytest.fixture(autouse=True)
def here(home, monkeypatch, plane):
    monkeypatch.setenv("CLIPFT_GATEWAY_URL", f"{plane.url}/gateway")
    monkeypatch.setenv("CLIPFT_GATEWAY_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    settings.cache_clear()


def clipft(*words: str) -> SimpleNamespace:
    done = CliRunner().invoke(main, words)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return SimpleNamespace(ok=done.exit_code == 0, out=done.output)


def code_for(name: str) -> str:
    return re.search(r"--code (\S+)", clipft("worker", "invite", name).out)[1]


def differing(monkeypatch: pytest.MonkeyPatch, **theirs: object) -> None:
    """The control plane is another than this machine: versions, code or revision."""
    mine = versions.here()
    other = replace(mine, **theirs | {"versions": mine.versions | dict(theirs.get("versions", {}))})
    monkeypatch.setattr(versions, "here", lambda: other)  # what the gateway answers
    real = versions.differences
    monkeypatch.setattr(versions, "differences", lambda said, ours=None: real(said, mine))


def test_joined_by_the_printed_command_checked_seen_and_left(plane, home):
    printed = clipft("worker", "invite", "desk").out
    assert f"clipft worker join {plane.url} --code desk." in printed
    joined = clipft(*re.search(r"clipft (worker join .*)", printed)[1].split())
    assert joined.ok, joined.out
    for name in ("clock", "versions", "disk", "device", "airflow", "mlflow", "data"):
        assert re.search(rf"✓ {name}", joined.out), joined.out
    kept = membership.membership_path()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and kept.is_relative_to(home)
    assert membership.Membership.read().secret not in joined.out

    assert clipft("worker", "check").ok
    status = clipft("worker", "status").out
    assert "desk of http://127" in status and "not running" in status and "same versions and code" in status
    listed = clipft("worker", "list").out
    assert re.search(r"desk +seen \d+ s ago +cpu", listed)

    who = membership.Membership.read()
    assert "worthless" in clipft("worker", "leave").out
    assert not kept.exists() and plane.gateway.get("/v1/me", auth=(who.name, who.secret)).status_code == 403
    assert "no worker yet" in clipft("worker", "check").out


def test_a_worker_that_joined_with_an_earlier_release_finds_the_studies(plane):
    assert clipft("worker", "join", plane.url, "--code", code_for("old")).ok
    joined = membership.Membership.read()
    kept = membership.membership_path()
    kept.write_text(kept.read_text().replace("/gateway/v1/", "/door/v1/"))
    assert membership.Membership.read() == joined and joined.addresses["studies"].endswith("/gateway/v1/studies")


@pytest.mark.parametrize(
    ("theirs", "said", "way"),
    [
        ({"versions": {"airflow": "9.9.9"}}, "airflow is .* here and 9.9.9", "apache-airflow==9.9.9"),
        ({"versions": {"python": "3.13"}}, "python is .* here and 3.13", "make PYTHON=python3.13 worker"),
        ({"code": "other", "revision": "abcdef0"}, "the code is .* here and other", "git checkout abcdef0 && make worker"),
        ({"code": "other", "revision": ""}, "the code is .* here and other", "copy clipft_tasks, dags and plugins"),
    ],
)
def test_other_versions_or_code_are_refused_with_the_command_and_the_code_still_holds(monkeypatch, plane, theirs, said, way):
    code = code_for("other")
    with monkeypatch.context() as patch:
        differing(patch, **theirs)
        refused = clipft("worker", "join", plane.url, "--code", code)
    assert not refused.ok and re.search(said, refused.out) and way in refused.out and not membership.membership_path().exists()
    assert clipft("worker", "join", plane.url, "--code", code).ok


def test_a_wrong_clock_a_full_disk_and_no_code_are_called_that(monkeypatch, plane):
    code = code_for("clock")
    with monkeypatch.context() as patch:
        real = time.time
        patch.setattr(membership.httpx, "request", lambda *a, **k: _shifted(real, plane, *a, **k))
        refused = clipft("worker", "join", plane.url, "--code", code)
    assert not refused.ok and re.search(r"✗ clock +1[12]\d\.\d s behind.*30 are allowed", refused.out)
    assert re.search("sntp|timedatectl", refused.out)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
        refused = clipft("worker", "join", plane.url, "--code", code)
    assert not refused.ok and "1.0 GiB free" in refused.out and "CLIPFT_HOME" in refused.out
    assert "clipft worker invite NAME" in clipft("worker", "join", plane.url).out
    wrong = clipft("worker", "join", plane.url, "--code", "clock.nonsense")
    assert not wrong.ok and "unknown, was used, or is too old" in wrong.out
    assert not membership.membership_path().exists()


REQUEST = membership.httpx.request


def _shifted(now, plane, *args, **kwargs):
    """The same answer from a control plane whose clock is two minutes ahead."""
    answer = REQUEST(*args, **kwargs)
    return httpx.Response(answer.status_code, json=answer.json() | {"time": now() + 120}, request=answer.request)


def test_nobody_there_or_somebody_else_is_said(plane):
    assert "does not answer" in clipft("worker", "join", "http://127.0.0.1:1", "--code", "x.y").out
    assert "not as a clipft control plane" in clipft("worker", "join", f"{plane.url}/elsewhere", "--code", "x.y").out


def test_a_revoked_worker_does_not_start_and_says_why(plane):
    clipft("worker", "join", plane.url, "--code", code_for("gone"))
    assert "turned away" in clipft("worker", "revoke", "gone").out
    for command in ("run", "check"):
        refused = clipft("worker", command)
        assert not refused.ok and "Worker gone was revoked" in refused.out and "clipft worker invite gone" in refused.out
    assert "no worker 'nobody'" in clipft("worker", "revoke", "nobody").out.lower()


def test_the_worker_refuses_to_run_other_code(monkeypatch, plane):
    clipft("worker", "join", plane.url, "--code", code_for("stale"))
    differing(monkeypatch, code="other", revision="abcdef0")
    refused = clipft("worker", "run")
    assert not refused.ok and "the code is" in refused.out and "git checkout abcdef0" in refused.out


def test_what_airflow_reads_has_the_workers_secret_and_nothing_of_this_shell(monkeypatch, plane):
    clipft("worker", "join", plane.url, "--code", code_for("env"), "--queue", "cuda")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    monkeypatch.setenv("CLIPFT_MLFLOW_URI", "http://elsewhere")
    monkeypatch.setenv("CLIPFT_UPLOAD_SECONDS", "7")
    member = membership.Membership.read()
    env = member.environment()
    assert member.queue == "cuda" and env["AIRFLOW__API_AUTH__JWT_SECRET"] == env["MLFLOW_TRACKING_PASSWORD"] == member.secret
    assert "MLFLOW_TRACKING_URI" not in env and env["CLIPFT_MLFLOW_URI"] == plane.url and env["CLIPFT_UPLOAD_SECONDS"] == "7"
    assert env["CLIPFT_DVC_REMOTE"].startswith("http") and env["CLIPFT_TUNING_URL"] == f"{plane.url}/gateway/v1/studies"
    assert env["AIRFLOW__CORE__EXECUTE_TASKS_NEW_PYTHON_INTERPRETER"] == "True"
    assert env["AIRFLOW__CORE__EXECUTOR"].endswith("EdgeExecutor")  # DAG files name it


def test_the_launchd_agent_and_the_systemd_unit_are_what_those_programs_read(monkeypatch, plane, home):
    clipft("worker", "join", plane.url, "--code", code_for("login"))
    agent = plistlib.loads(service.launchd_agent())
    assert agent["RunAtLoad"] and agent["KeepAlive"] == {"SuccessfulExit": False} and agent["ProcessType"] == "Interactive"
    assert agent["ProgramArguments"][-2:] == ["worker", "run"] and agent["EnvironmentVariables"]["CLIPFT_HOME"] == str(home)
    assert service.definition_path("Darwin").name == "io.clipft.worker.plist"

    shown = clipft("worker", "install", "--no-start").out
    path = service.definition_path()
    assert str(path) in shown and "worker.log" in shown
    if shutil.which("systemd-analyze") and sys.platform == "linux":
        env = {**os.environ, "XDG_RUNTIME_DIR": str(home.parent)}
        verified = subprocess.run(["systemd-analyze", "--user", "verify", str(path)], env=env, capture_output=True, text=True)
        assert verified.returncode == 0 and str(path.name) not in verified.stderr, verified.stderr
    assert "at login: yes" in clipft("worker", "status").out
    clipft("worker", "leave")
    assert not path.exists()


def test_the_machine_is_held_awake_while_a_task_runs_and_no_longer(tmp_path, monkeypatch):
    (tmp_path / "caffeinate").write_text("#!/bin/sh\necho $$ > $0.pid; exec sleep 60\n")
    (tmp_path / "caffeinate").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    awake = service.SleepInhibitor()
    awake.hold(True)
    awake.hold(True)
    until = time.monotonic() + 10
    while not (tmp_path / "caffeinate.pid").exists() or not (tmp_path / "caffeinate.pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.02)
    pid = int((tmp_path / "caffeinate.pid").read_text())
    os.kill(pid, 0)
    awake.hold(False)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_low_power_mode_is_noticed(monkeypatch):
    monkeypatch.setattr(checks.platform, "system", lambda: "Darwin")
    shown = "Currently in use:\n standby 1\n lowpowermode         1\n"
    monkeypatch.setattr(checks.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=shown))
    assert checks.low_power()
    monkeypatch.setattr(checks.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=shown.replace("1\n", "0\n")))
    assert not checks.low_power()

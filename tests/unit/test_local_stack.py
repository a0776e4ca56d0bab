"""`make up`, `down`, `clean` as people use them: twice at once, with wrong ports, on a folder of others, as another user."""

import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from fixtures.errors import refuses

from clipft_tasks.cli import main as cli
from clipft_tasks.core.machine import refusal
from clipft_tasks.core.settings import settings
from clipft_tasks.ops import stack_processes
from deploy.local import stack
from deploy.local.environment import PORTS, ports


@pytest.fixture(autouse=True)
def own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.cache_clear()


def test_of_two_starts_at_once_one_starts_and_the_other_finds_it_up(monkeypatch, capsys):
    began, go_on, is_up, starts = threading.Event(), threading.Event(), threading.Event(), []

    def start() -> None:
        starts.append(threading.current_thread())
        began.set()
        assert go_on.wait(30)
        is_up.set()

    ended = []
    monkeypatch.setattr(stack, "_start", start)
    monkeypatch.setattr(stack, "down", lambda quiet=False: ended.append(quiet))
    monkeypatch.setattr(stack, "addresses", lambda: None)
    monkeypatch.setattr(stack, "running", is_up.is_set)
    monkeypatch.setattr(stack, "healthy", is_up.is_set)
    first, second = threading.Thread(target=stack.up), threading.Thread(target=stack.up)
    first.start()
    assert began.wait(30)
    second.start()
    said = ""
    while "Another `make up`" not in said and second.is_alive():
        said += capsys.readouterr().out
    assert len(starts) == 1
    go_on.set()
    first.join(30)
    second.join(30)
    assert len(starts) == 1 and ended == [True]  # what the first starts is ended by nobody
    assert "Another `make up`" in said and "already up" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["8o80", "0", "65536", "-1", "80.5", "٨٠٨٠"])
def test_what_is_no_port_is_refused_by_name(monkeypatch, port):
    monkeypatch.setenv("CLIPFT_SERVER_PORT", port)
    with refuses("stack.invalid_port", "CLIPFT_SERVER_PORT", port):
        ports()


def test_two_programs_do_not_get_one_port(monkeypatch):
    monkeypatch.setenv("CLIPFT_MLFLOW_PORT", str(PORTS["airflow"]))
    with refuses("stack.invalid_port", "airflow", "mlflow", PORTS["airflow"]):
        ports()
    monkeypatch.setenv("CLIPFT_MLFLOW_PORT", "")  # as where a shell's variable is empty
    assert ports() == PORTS


def test_clean_removes_a_home_and_no_folder_of_others(home, monkeypatch, capsys):
    stack.clean()
    assert "There is no" in capsys.readouterr().out and not home.exists()
    (home / "photographs").mkdir(parents=True)
    with refuses("stack.no_home", home):
        stack.clean()
    assert (home / "photographs").exists()
    (home / "secrets.json").write_text("{}")
    stack.clean()
    assert not home.exists()


def test_a_file_where_the_home_is_to_be_is_said(home):
    home.write_text("notes")
    with refuses("home.no_folder", home):
        settings().folder("logs")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_and_a_file_of_another_user_are_said_in_a_sentence(monkeypatch):
    with pytest.raises(OSError) as full:
        Path("/dev/full").write_text("x")
    assert refusal(full.value).code == "machine.disk_full"
    assert refusal(FileNotFoundError(2, "No such file", "x")) is None

    def owned(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/home/ann/.clipft/secrets.json")

    monkeypatch.setattr(stack, "up", owned)
    monkeypatch.setattr(sys, "argv", ["stack", "up"])
    with pytest.raises(SystemExit, match=r"/home/ann/\.clipft/secrets\.json.*machine\.not_permitted"):
        stack.main()
    monkeypatch.setattr("clipft_tasks.domains.domain_names", owned)
    done = CliRunner().invoke(cli, ["domains"])
    assert done.exit_code == 1 and "/home/ann/.clipft" in done.output and "Traceback" not in done.output


def test_a_clock_that_is_set_changes_nothing_about_who_runs(home, monkeypatch):
    program = subprocess.Popen(["sleep", "900"])
    try:
        home.mkdir()
        stack_processes.note({"program": program.pid})
        usual = psutil.Process.create_time
        monkeypatch.setattr(
            psutil.Process, "create_time", lambda process: usual(process) - (3600 if sys.platform == "linux" else 0)
        )
        assert stack_processes.programs()["program"].pid == program.pid
    finally:
        program.kill()
        program.wait()

"""The embedded stack: up, down, status, clean. One supervisor runs the Procfile; stopping it leaves no child behind."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.machine import refusal
from clipft_tasks.core.settings import HOME, settings
from clipft_tasks.ops import installation, stack_processes, upgrade
from clipft_tasks.ops.doctor import health

from . import monitoring, supervisor
from .environment import PROJECT, USER, address, airflow_client, environment, keep_secrets, password_of, people, ports

NEEDED_GB = 3
STARTING = 900.0  # seconds after which another start of this stack is given up
MADE = ("stack.env", "secrets.json", "mlflow", "datasets")  # by the stack or the command line: one of them is in every home
DAGS = {path.stem for path in (PROJECT / "dags").glob("clipft_*.py")}
HEALTH = {
    "mlflow": ("mlflow", "/health"),
    "server": ("server", "/healthz"),
    "airflow": ("airflow", "/api/v2/monitor/health"),
    "statsd": ("statsd", "/metrics"),
    "prometheus": ("prometheus", "/-/ready"),
    "alertmanager": ("alertmanager", "/-/ready"),
}


def up() -> None:
    """Start what is not running and wait until all of it answers.

    Raises:
        ClipftError: a port is taken, the disk is full, a program ended; with the way out.
    """
    with _alone():
        if running() and healthy():
            print("The stack is already up.")
            return addresses()
        _check_machine()
        down(quiet=True)
        _start()


def _start() -> None:
    programs = ["mlflow", "server", "airflow-api", "scheduler", "dag-processor", "triggerer", "statsd"]
    watching = monitoring.prepare()
    programs += watching
    _check_ports(programs)
    env = environment()
    log = settings().folder("logs") / "stack.log"
    began = time.monotonic()
    _migrate()
    installation.save_stack_settings(env)
    with log.open("a") as out:
        command = [sys.executable, "-m", supervisor.__name__, *programs]
        manager = subprocess.Popen(
            command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    _wait(lambda: healthy(watching), manager, log, 300)  # minutes, where two cores do much else
    airflow = airflow_client()
    airflow.pool("accelerator", 1, "the accelerator: one training or evaluation task at a time")
    _wait(lambda: airflow.dags() >= DAGS, manager, log, 90)
    print(f"The stack is up after {time.monotonic() - began:.0f} s.")
    addresses()


def down(quiet: bool = False) -> None:
    """Stop every process of this stack and see that none is left."""
    manager, left = running(), stack_processes.members()
    if manager:
        manager.send_signal(signal.SIGTERM)
        try:
            manager.wait(20)
        except psutil.TimeoutExpired:
            manager.kill()
    for process in left:
        with suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=8)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)
    stack_processes.forget()
    if not quiet:
        print("The stack is down. `make up` starts it again with nothing lost." if left else "Nothing was running.")


def clean() -> None:
    """Stop the stack and remove everything it kept: runs, models, data sets, caches.

    Raises: ClipftError where the home is a folder in which clipft never was, and is not called as one.
    """
    home = settings().root
    if not home.exists():
        return print(f"There is no {home}.")
    if home.name != HOME and not any((home / name).exists() for name in MADE):
        raise ClipftError(
            str(home), "nothing in it is of clipft, so it is left as it is", "Set CLIPFT_HOME to the home that is to go.",
            code="stack.no_home",
        )  # fmt: skip
    with _alone():
        down(quiet=True)
        shutil.rmtree(home)
    print(f"Removed {home}.")


@contextmanager
def _alone() -> Iterator[None]:
    """Let nobody else start this stack, or remove it, meanwhile: each would end what the other starts."""
    lock = FileLock(str(settings().folder() / "stack.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        print("Another `make up` is at work here; this one goes on when it is done.", flush=True)
        try:
            lock.acquire(timeout=STARTING)
        except Timeout:
            raise ClipftError(
                f"the stack of {settings().root}", f"another `make up` has been at work for {STARTING / 60:.0f} minutes",
                "End that one, then start again.", code="stack.busy",
            ) from None  # fmt: skip
    try:
        yield
    finally:
        lock.release()


def addresses() -> None:
    """Where a person finds everything."""
    rows = [
        *(
            ("Airflow", address("airflow"), f"user {name}{others}, password {keep_secrets()[password_of(name)]}")
            for name, others in ((name, "" if name == USER else f" ({role})") for name, role in people().items())
        ),
        ("MLflow", address("mlflow"), "runs, evaluations, model versions"),
        ("Server", address("server"), "playground; API under /docs, metrics under /metrics"),
        *(
            (p.capitalize(), address(p), monitoring.pages(p) if _answers(p) else f"not running: `make monitoring` installs {p}")
            for p in monitoring.BINARIES
        ),
    ]
    for name, url, note in rows:
        print(f"  {name:11} {url:24} {note}")


def status() -> None:
    """Where everything is, and whether it is well, as `clipft doctor` says it."""
    addresses()
    os.environ.update({k: v for k, v in environment().items() if k.startswith("CLIPFT_")})
    settings.cache_clear()
    found = health.run_checks()
    print("\n".join(health.as_lines(found)))
    if not health.is_healthy(found):
        sys.exit(1)


def healthy(watching: list[str] | None = None) -> bool:
    """Does everything answer? Prometheus and Alertmanager count where they are installed, or where they are named."""
    if watching is None:
        watching = [p for p in monitoring.BINARIES if monitoring.binary(p)]
    return all(_answers(name) for name in HEALTH if name not in monitoring.BINARIES or name in watching)


def running() -> psutil.Process | None:
    """The supervisor, if it is alive."""
    return stack_processes.programs().get(stack_processes.SUPERVISOR)


@cache
def _client() -> httpx.Client:
    """One for all that is asked twice a second: to make one takes 20 ms."""
    return httpx.Client(timeout=5)


def _answers(name: str) -> bool:
    program, path = HEALTH[name]
    try:
        answer = _client().get(address(program) + path)
    except httpx.HTTPError:
        return False
    if name == "airflow" and answer.is_success:
        parts = answer.json()
        return all(
            (parts.get(p) or {}).get("status") == "healthy" for p in ("metadatabase", "scheduler", "dag_processor", "triggerer")
        )
    return answer.is_success


def _check_machine() -> None:
    free = shutil.disk_usage(settings().folder()).free / 2**30
    if free < NEEDED_GB:
        raise ClipftError(
            f"disk of {settings().root}",
            f"{free:.1f} GiB are free and {NEEDED_GB} are needed",
            "Free some, or set CLIPFT_HOME to another disk.",
            code="stack.disk_full",
        )


def _check_ports(programs: list[str]) -> None:
    for name, port in ports().items():
        if name in monitoring.BINARIES and name not in programs:
            continue
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                raise ClipftError(
                    f"port {port} ({name})",
                    "another program holds it",
                    f"Stop that program, or choose another: CLIPFT_{name.upper()}_PORT={port + 1} make up.",
                    code="stack.port_taken",
                ) from None


def _migrate() -> None:
    """Bring home and databases to this release, once a version, before several programs try to."""
    from importlib.metadata import version

    releases = f"{upgrade.LAYOUT}-{version('apache-airflow')}-{version('mlflow')}"
    stamp = settings().folder("airflow") / f"migrated-{releases}"
    if upgrade.due() or not stamp.exists():
        print("Preparing the databases of Airflow and MLflow…")
        for note in upgrade.upgrade().notes:
            print(note)
        stamp.touch()


def _wait(ready: Callable[[], bool], manager: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if manager.poll() is not None:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            down(quiet=True)
            raise ClipftError(
                "the stack",
                f"one of its programs does not start and the others were stopped; the log's end:\n{tail}\n",
                f"See {log}.",
                code="stack.program_ended",
            )
        if ready():
            return
        time.sleep(0.5)
    silent = [name for name in HEALTH if not _answers(name)]
    if "airflow" not in silent:
        broken = airflow_client().call("GET", "/importErrors")["import_errors"]
        for error in broken:
            raise ClipftError(
                f"DAG file {error['filename']}",
                f"it cannot be imported:\n{error['stack_trace']}",
                "Correct the file.",
                code="stack.invalid_dag",
            )
    raise ClipftError(
        "the stack",
        f"{', '.join(silent) or 'Airflow'} did not answer within {seconds:.0f} s",
        f"See {log}.",
        code="stack.no_answer",
    )


def main() -> None:
    actions = {"up": up, "down": down, "clean": clean, "status": status}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=actions)
    try:
        actions[parser.parse_args().action]()
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")
    except OSError as error:
        if (refused := refusal(error)) is None:
            raise
        sys.exit(f"Error: {refused.line}")


if __name__ == "__main__":
    main()

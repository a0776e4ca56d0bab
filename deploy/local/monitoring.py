"""Prometheus and Alertmanager of the embedded stack: found, installed where that is possible, and configured."""

import os
import shutil
import subprocess
import sys

from clipft_tasks.core.files import atomic_write
from clipft_tasks.core.settings import settings

from .environment import ALERTMANAGER, PROJECT, address, keep_secrets, ports

BINARIES = {"prometheus": ("prometheus",), "alertmanager": ALERTMANAGER}
PACKAGES = {"darwin": ["prometheus", "alertmanager"], "linux": ["prometheus", "prometheus-alertmanager"]}


def binary(program: str) -> str | None:
    """The program's path, whatever its packager called it."""
    return next((path for name in BINARIES[program] if (path := shutil.which(name))), None)


def prepare() -> list[str]:
    """Which of the two can be started, with their configuration written; what is missing is said, and nothing depends on it."""
    if not all(map(binary, BINARIES)):
        _install()
    there = [program for program in BINARIES if binary(program)]
    for program in BINARIES.keys() - set(there):
        print(f"{program} is not installed: going on without it. Your package manager has it.")
    home = settings().folder()
    deploy = PROJECT / "deploy"
    token = home / "alert-token"
    atomic_write(token, keep_secrets()["alerts"], mode=0o600)
    values = {
        "SERVER_ADDRESS": f"127.0.0.1:{ports()['server']}",
        "METRICS_ADDRESS": f"127.0.0.1:{ports()['statsd']}",
        "ALERTMANAGER_ADDRESS": f"127.0.0.1:{ports()['alertmanager']}",
        "AIRFLOW_ADDRESS": address("airflow"),
        "RULES": str(deploy / "prometheus" / "rules.yml"),
        "TOKEN_FILE": str(token),
    }
    for program in BINARIES:
        text = (deploy / program / f"{program}.yml").read_text()
        comment, _, body = text.partition("\n")
        for name, value in values.items():
            body = body.replace(name, value)
        atomic_write(home / f"{program}.yml", f"{comment}\n{body}")
    return there


def _install() -> None:
    platform = "darwin" if sys.platform == "darwin" else "linux"
    if platform == "darwin" and shutil.which("brew"):
        command = ["brew", "install", *PACKAGES[platform]]
    elif shutil.which("apt-get") and os.geteuid() == 0:
        command = ["sh", "-c", f"apt-get update -qq && apt-get install -y -qq {' '.join(PACKAGES[platform])}"]
    else:
        return
    print("Installing Prometheus and Alertmanager with the system's package manager…")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"That did not work: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")

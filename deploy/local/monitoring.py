"""Prometheus and Alertmanager of the embedded stack: found, configured, and installed where a person asks for it."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress

import httpx

from clipft_tasks.core.errors import ClipftError
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
    there = [program for program in BINARIES if binary(program)]
    if missing := " and ".join(program for program in BINARIES if program not in there):
        print(
            f"Going on without {missing}: not installed. Drift is read from the server itself. `make monitoring` installs it."
        )
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


def install() -> None:
    """Install both with the system's package manager, which `make up` never does by itself. Raises ClipftError."""
    platform = "darwin" if sys.platform == "darwin" else "linux"
    packages = PACKAGES[platform]
    if platform == "darwin" and shutil.which("brew"):
        command = ["brew", "install", *packages]
    elif shutil.which("apt-get") and os.geteuid() == 0:
        command = ["sh", "-c", f"apt-get update -qq && apt-get install -y -qq {' '.join(packages)}"]
    else:
        raise ClipftError(
            "Prometheus and Alertmanager",
            "there is no package manager here that this user may install with",
            f"Install them by hand; on Debian: sudo apt-get install {' '.join(PACKAGES['linux'])}",
            code="stack.no_monitoring",
        )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClipftError("Prometheus and Alertmanager", reason, "Install them by hand.", code="stack.no_monitoring")
    print("Prometheus and Alertmanager are installed: `make down`, then `make up` starts them too.")


def pages(program: str) -> str:
    """Where the pages of a running program are, as its packager left them: Debian's Prometheus has only the classic ones, and its
    Alertmanager none."""
    for path in ("/alerts", "/classic/alerts") if program == "prometheus" else ():
        with suppress(httpx.HTTPError):
            if httpx.get(address(program) + path, timeout=5, follow_redirects=True).is_success:
                return f"alerts under {path}"
    with suppress(httpx.HTTPError):
        if "does not include" in httpx.get(address(program), timeout=5, follow_redirects=True).text:
            return "no pages in this package; alerts under /api/v2/alerts"
    return ""


if __name__ == "__main__":
    try:
        install()
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")

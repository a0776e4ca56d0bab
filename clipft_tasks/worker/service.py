"""A worker that starts when its owner logs in and keeps trying: a launchd agent on macOS, a systemd user unit on Linux.

And what keeps the machine awake while a task runs.
"""

import os
import platform
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings
from ..core.versions import PROJECT
from .membership import OWN

LABEL = "io.clipft.worker"
STOPPING = 180  # seconds that a stop may take: a checkpoint is written and handed over


def log_path() -> Path:
    """Where a worker that was started at login writes."""
    return settings().folder("worker") / "worker.log"


def definition_path(system: str = "") -> Path:
    """Where the system looks for it. Raises ClipftError on a system that has neither."""
    system = system or platform.system()
    if system == "Darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    if system == "Linux":
        base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return base / "systemd" / "user" / "clipft-worker.service"
    raise ClipftError(
        f"starting at login on {system}",
        "only macOS and Linux are known",
        "Start `clipft worker run` by other means.",
        code="worker.unknown_system",
    )


def _command() -> list[str]:
    return [sys.executable, "-m", "clipft_tasks.cli", "worker", "run"]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(
        dict.fromkeys([str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)])
    )
    return {"CLIPFT_HOME": str(settings().root), "PATH": path} | {k: os.environ[k] for k in OWN if k in os.environ}


def launchd_agent() -> bytes:
    """The launchd agent. It comes back after every end but a clean one, which is a drain."""
    return plistlib.dumps({
        "Label": LABEL,
        "ProgramArguments": _command(),
        "WorkingDirectory": str(PROJECT),
        "EnvironmentVariables": _environment(),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 30,
        "ExitTimeOut": STOPPING,
        "ProcessType": "Interactive",  # or the system slows it down in the background
        "StandardOutPath": str(log_path()),
        "StandardErrorPath": str(log_path()),
    })  # fmt: skip


def systemd_unit() -> str:
    """The systemd user unit."""

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'

    variables = "\n".join(f"Environment={quoted(f'{k}={v}')}" for k, v in _environment().items())
    return f"""[Unit]
Description=clipft worker: training tasks of a team's control plane
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={" ".join(quoted(word) for word in _command())}
WorkingDirectory={str(PROJECT).replace("%", "%%")}
{variables}
Restart=on-failure
RestartSec=30
KillMode=mixed
TimeoutStopSec={STOPPING}
StandardOutput=append:{str(log_path()).replace("%", "%%")}
StandardError=inherit

[Install]
WantedBy=default.target
"""


def install(start: bool = True) -> tuple[Path, str]:
    """Write it and, where asked, start it; returns its place and what else a person should know. Raises ClipftError."""
    path, mac = definition_path(), platform.system() == "Darwin"
    atomic_write(path, launchd_agent() if mac else systemd_unit())
    if mac:
        _run_ignoring_errors(["launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}"])
        commands, note = [["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)]], ""
    else:
        commands = [["systemctl", "--user", "daemon-reload"], ["systemctl", "--user", "enable", "--now", path.name]]
        note = "To have it run without anybody logged in: loginctl enable-linger"
    for command in commands if start else []:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip()
            raise ClipftError(
                f"`{' '.join(command)}`",
                f"it failed: {said}",
                f"{path} is written; run that by hand in a session of your own.",
                code="ops.program_failed",
            ) from None
    return path, note


def uninstall() -> Path | None:
    """Stop and remove it; returns where it was, None when there was none."""
    try:
        path = definition_path()
    except ClipftError:
        return None
    if not path.exists():
        return None
    if platform.system() == "Darwin":
        _run_ignoring_errors(["launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}"])
    else:
        _run_ignoring_errors(["systemctl", "--user", "disable", "--now", path.name])
    path.unlink()
    return path


def _run_ignoring_errors(command: list[str]) -> None:
    try:
        subprocess.run(command, check=False, capture_output=True, timeout=STOPPING + 30)
    except (OSError, subprocess.SubprocessError):
        pass


class SleepInhibitor:
    """Keeps the machine from sleeping while it is held; does nothing where the system has no means."""

    def __init__(self) -> None:
        self._holder: subprocess.Popen[bytes] | None = None

    @staticmethod
    def command() -> list[str]:
        """The program that prevents sleep for as long as it runs; [] where there is none."""
        if shutil.which("caffeinate"):
            return ["caffeinate", "-i", "-m", "-s", "-w", str(os.getpid())]
        if shutil.which("systemd-inhibit"):
            why = ["--what=idle:sleep", "--who=clipft", "--why=a training task runs", "--mode=block"]
            return ["systemd-inhibit", *why, "tail", "--follow", "/dev/null", f"--pid={os.getpid()}"]
        return []

    def hold(self, wanted: bool) -> None:
        """Hold or release; saying the same again changes nothing."""
        if wanted and self._holder is None and (command := self.command()):
            null = subprocess.DEVNULL
            self._holder = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
        elif not wanted and self._holder is not None:
            self._holder.terminate()
            self._holder.wait()
            self._holder = None

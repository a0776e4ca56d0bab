"""The installations: the one that is struck, and the one that nobody disturbs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from ...core.errors import ClipftError
from ...core.settings import CHECKOUT, settings
from .. import installation
from . import made, state

UNDISTURBED = "clipft_tasks.cli.undisturbed"  # a program; nothing here may import what it runs
PROGRAMS = ("AIRFLOW", "MLFLOW", "SERVER", "PROMETHEUS", "ALERTMANAGER", "STATSD")
DOMAINS = "CLIPFT_DOMAINS_PATH"


def undisturbed(folder: Path, rounds: int) -> state.State:
    """What the same rounds make where nobody strikes. Raises: ClipftError with the last words of a run that fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CLIPFT_", "AIRFLOW"))} | {
        "CLIPFT_HOME": str(folder / "undisturbed"), DOMAINS: str(made.domain_file(folder / "made"))
    }  # fmt: skip
    asked = [sys.executable, "-m", UNDISTURBED, str(folder / "made"), str(rounds)]
    done = subprocess.run(asked, cwd=CHECKOUT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClipftError(
            "the undisturbed run", f"it failed: {done.stderr[-1500:]}", "Mend that first: nothing had been struck yet.",
            code="chaos.undisturbed_failed",
        )  # fmt: skip
    return dict(json.loads(done.stdout.rpartition(state.STATE)[2]))


def become(home: Path, domains: Path) -> None:
    """Make this process one of an installation of its own, on ports that nobody holds."""
    for name in [n for n in os.environ if n.startswith(("CLIPFT_", "AIRFLOW"))]:
        del os.environ[name]
    os.environ |= {"CLIPFT_HOME": str(home), DOMAINS: str(domains)}
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PROGRAMS]
    for program, listener in zip(PROGRAMS, held, strict=True):
        os.environ[f"CLIPFT_{program}_PORT"] = str(listener.getsockname()[1])
        listener.close()
    settings.cache_clear()


def stack(action: str) -> None:
    """`make up` or `make down`. Raises: ClipftError with its last words."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPFT_") or k.endswith(("_PORT", "_HOME", DOMAINS))}
    asked = [sys.executable, "-m", "deploy.local.stack", action]
    done = subprocess.run(
        asked, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise ClipftError(
            f"the stack of {settings().root}", f"`{action}`: {done.stdout[-1500:]}",
            f"All that its programs said is in {settings().root / 'logs' / 'stack.log'}.", code="chaos.stack_failed",
        )  # fmt: skip
    installation.use_stack_settings()

"""The installation that these commands look after: where it is, what is installed, and one of them at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import Settings, settings

STACK = "stack.env"
PROGRAMS = {"clipft": "clipft", "airflow": "apache-airflow", "mlflow": "mlflow", "dvc": "dvc", "optuna": "optuna"}


def use_stack_settings() -> None:
    """Take the addresses of the embedded stack of this home, which `make up` noted, wherever the environment names no other."""
    try:
        lines = (settings().root / STACK).read_text().splitlines()
    except OSError:
        return
    for name, _, value in (line.partition("=") for line in lines):
        if name.startswith("CLIPFT_"):
            os.environ.setdefault(name, value)
    settings.cache_clear()


def stack_answers() -> bool:
    """Does the embedded stack of this home run? Its MLflow takes connections."""
    try:
        noted = dict(line.partition("=")[::2] for line in (settings().root / STACK).read_text().splitlines())
        port = urlsplit(noted.get("CLIPFT_MLFLOW_URI", "")).port
        with socket.create_connection(("127.0.0.1", port or 0), timeout=0.3):
            return True
    except (OSError, ValueError):
        return False


def save_stack_settings(env: dict[str, str]) -> None:
    """Note where the embedded stack is. Readable by its owner only: it holds the tokens that callers show."""
    names = sorted(f"CLIPFT_{field.upper()}" for field in Settings.model_fields)
    atomic_write(settings().root / STACK, "".join(f"{name}={env[name]}\n" for name in names if name in env), mode=0o600)


def is_embedded() -> bool:
    """Is this one person's machine? A team's Airflow keeps its tables in Postgres."""
    return settings().databases["airflow"].startswith("sqlite:")


def start_command() -> str:
    return "make up" if is_embedded() else "docker compose up -d"


def log_command(service: str) -> str:
    return (
        f"tail -n 50 {settings().root / 'logs' / 'stack.log'}" if is_embedded() else f"docker compose logs --tail 50 {service}"
    )


def versions() -> dict[str, str]:
    """What is installed here of the programs whose state is kept."""
    found = {}
    for name, package in PROGRAMS.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def maintenance_lock(what: str) -> Iterator[None]:
    """Let nobody else back up, restore, clear or upgrade this installation meanwhile."""
    try:
        with FileLock(str(settings().folder() / "maintenance.lock"), timeout=0):
            yield
    except Timeout:
        raise ClipftError(
            what,
            "a backup, restore, gc, erasure or upgrade of this installation is running",
            "Try again when it is done.",
            code="ops.busy",
        ) from None


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder; 0 when there is none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:
            continue
    return total


def human_size(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

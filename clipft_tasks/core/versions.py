"""What runs here: versions of the programs that two machines must share, and a digest of the code. Imports none of them."""

import hashlib
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "airflow": "apache-airflow",
    "edge": "apache-airflow-providers-edge3",
    "mlflow": "mlflow",
    "torch": "torch",
    "optuna": "optuna",
}
CODE = ("clipft_tasks", "dags", "plugins")
SUFFIXES = {".py", ".html", ".j2", ".json"}


@dataclass(frozen=True)
class Software:
    """What a machine runs: versions by program, digest of the code, and its git revision ("" where there is no repository)."""

    versions: dict[str, str]
    code: str
    revision: str


def here() -> Software:
    """What this checkout runs."""
    return Software(installed(), digest(), revision())


def installed() -> dict[str, str]:
    """Versions by name: what is installed, else what this checkout pins; a program that is neither is left out."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package).partition("+")[0]  # 2.14.1+cpu is 2.14.1
        except PackageNotFoundError:
            if package in _pinned():
                found[name] = _pinned()[package]
    return found


@cache
def _pinned() -> dict[str, str]:
    try:
        lines = (PROJECT / "requirements.lock").read_text().splitlines()
    except OSError:
        return {}
    return {m[1]: m[2] for line in lines if (m := re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line))}


@cache
def digest(root: Path = PROJECT) -> str:
    """A digest of everything that decides what a task does; the same on every machine with the same files."""
    out = hashlib.sha256()
    for folder in CODE:
        for path in sorted((root / folder).rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
            if path.suffix in SUFFIXES and path.is_file():
                out.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
                out.update(path.read_bytes())
    return out.hexdigest()[:16]


@cache
def revision() -> str:
    """The git revision of this checkout; CLIPFT_REVISION where the code lies in an image without its repository."""
    if given := os.environ.get("CLIPFT_REVISION"):
        return given
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def differences(theirs: Software, ours: Software | None = None) -> list[tuple[str, str]]:
    """What differs from another machine's software, as (what, way out); [] when the two may work together."""
    ours = ours or here()
    out = []
    for name, wanted in theirs.versions.items():
        got = ours.versions.get(name)
        if got == wanted:
            continue
        if name == "python":
            way = f"make PYTHON=python{wanted} worker"
        else:
            way = f".venv/bin/uv pip install --python .venv/bin/python {PACKAGES.get(name, name)}=={wanted}"
        out.append((f"{name} is {got or 'not installed'} here and {wanted} on the control plane", way))
    if theirs.code != ours.code:
        if theirs.revision and theirs.revision != ours.revision:
            way = f"git fetch origin && git checkout {theirs.revision} && make worker"
        elif theirs.revision:
            way = f"git checkout {theirs.revision} -- {' '.join(CODE)}  # files were edited here, or on the control plane"
        else:
            way = "copy clipft_tasks, dags and plugins from the control plane's checkout"
        out.append((f"the code is {ours.code} here and {theirs.code} on the control plane", way))
    return out

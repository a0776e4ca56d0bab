"""What this machine is, and how warm it got."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from clipft_tasks.devices import apple_silicon, backend, hardware

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "apache-airflow", "mlflow")
Facts = dict[str, object]


def environment(device: str) -> Facts:
    """Chip, system, packages, power; nothing that names a person or a place."""
    machine = hardware.detect(device)
    return {
        "chip": str(apple_silicon.detect() or platform.processor() or platform.machine()),
        "system": f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_version()} {platform.machine()}",
        "clipft": _version("clipft"),
        "commit": said("git", "-C", str(PROJECT), "rev-parse", "--short", "HEAD"),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device,
        "device_memory_gib": round(machine.memory / 2**30, 2),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "swap_used_gib": round(psutil.swap_memory().used / 2**30, 2),
        "cores": machine.cores,
        "load": [round(x, 1) for x in os.getloadavg()],
        "power": said("pmset", "-g", "batt").partition("\n")[0],
        "low_power_mode": "lowpowermode         1" in said("pmset", "-g"),
        "torch_settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith("PYTORCH_")},
        "mps_built": torch.backends.mps.is_built(),
        "default_fallback": backend(device).name != "mps" or not os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK"),
    }


def temperatures() -> Facts:
    """What can be read without being root: macOS says whether it slows the chip down, Linux has sensors."""
    found: Facts = {}
    if thermal := said("pmset", "-g", "therm"):
        found["pmset"] = thermal
    if hasattr(psutil, "sensors_temperatures"):
        found |= {
            name: max(r.current for r in readings) for name, readings in psutil.sensors_temperatures().items() if readings
        }
    return found or {"said": "nothing here says how warm it is"}


def said(*command: str) -> str:
    """What a program says; "" where there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

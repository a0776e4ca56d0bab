"""Whether this Python and this machine can hold what is installed: python3 deploy/local/can_install.py [TARGET]

Before anything is installed, so with the standard library alone, and in words that Pythons older than ours can read.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWER = (3, 11), (3, 14)
MACOS = 14  # PyTorch has no packages for older ones
LINUX_GIB, MACOS_GIB = 9, 4  # PyTorch for CUDA is large


def problem(
    version: "tuple[int, ...]", system: str, machine: str, macos: str, translated: bool, free_gib: float, target: str
) -> str:
    """What is in the way, with the way out; "" where nothing is."""
    if not OLDEST <= tuple(version[:2]) < NEWER:
        return (
            f"Python {version[0]}.{version[1]} is not one of 3.11 to 3.13. Install one and run: make PYTHON=python3.12 {target}"
        )
    if system == "Darwin" and machine != "arm64":
        if translated:
            return (
                "this Python is an Intel build that Rosetta translates, for which PyTorch has no packages. Install one for arm64, for "
                "example with `brew install python@3.12` from a native terminal, and run: make PYTHON=/opt/homebrew/bin/python3.12 "
                + target
            )
        return "PyTorch has no packages for Macs with an Intel processor. Use a Mac with Apple Silicon, or Linux."
    if system == "Darwin" and macos and int(macos.split(".")[0]) < MACOS:
        return f"macOS {macos} is older than {MACOS}, the oldest that PyTorch has packages for. Update macOS."
    needed = MACOS_GIB if system == "Darwin" else LINUX_GIB
    if free_gib < needed:
        return f"{free_gib:.1f} GiB are free here and the packages need {needed}. Free some, or clone to another disk."
    return ""


def is_translated() -> bool:
    """Whether Rosetta translates this process."""
    if platform.system() != "Darwin":
        return False
    try:
        return subprocess.check_output(["sysctl", "-in", "sysctl.proc_translated"]).strip() == b"1"
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> None:
    target = sys.argv[1] if len(sys.argv) > 1 else "setup"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    found = problem(
        tuple(sys.version_info[:3]), platform.system(), platform.machine(), platform.mac_ver()[0], is_translated(), free, target
    )
    sys.exit("Error: " + found if found else 0)


if __name__ == "__main__":
    main()

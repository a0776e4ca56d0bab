"""What must be right before a machine takes tasks: one line each, and the command that mends it."""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from ..contracts.worker_gateway import CLOCK_LEEWAY
from ..core import versions
from ..core.errors import ClipftError
from ..core.settings import settings
from .membership import ControlPlane, Membership

NO_OBJECT = f"files/md5/00/{'0' * 30}"  # nobody has it: the store says 404, once it accepts who asks
NEEDED_GB = 8  # shards, decoded images, two checkpoints and a package of a mid-sized model


@dataclass(frozen=True)
class CheckResult:
    """One check. `fix` is a command, or a sentence where no command helps; a line that is wrong has one."""

    name: str
    right: bool
    said: str
    fix: str = ""


def check_compatibility(theirs: ControlPlane) -> Iterator[CheckResult]:
    """Clock, versions and code, compared with the control plane's."""
    skew, software = theirs.skew, theirs.about.software
    said = f"{abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} the control plane's"
    mend = "sudo sntp -sS time.apple.com" if platform.system() == "Darwin" else "sudo timedatectl set-ntp true"
    right = abs(skew) <= CLOCK_LEEWAY
    yield CheckResult("clock", right, said if right else f"{said}; {CLOCK_LEEWAY} are allowed", "" if right else mend)
    differ = versions.differences(software)
    shown = ", ".join(f"{k} {v}" for k, v in software.versions.items())
    if not differ:
        revision = f", revision {software.revision[:12]}" if software.revision else ""
        yield CheckResult("versions", True, f"{shown}; code {software.code}{revision}")
    for what, way in differ:
        yield CheckResult("versions", False, what, way)


def check_machine() -> Iterator[CheckResult]:
    """Disk and device. Imports torch."""
    free = shutil.disk_usage(settings().folder()).free / 2**30
    right = free >= NEEDED_GB
    said = f"{free:.1f} GiB free under {settings().root}"
    yield CheckResult(
        "disk",
        right,
        said if right else f"{said}; {NEEDED_GB} are needed",
        "" if right else "df -h; then free some, or set CLIPFT_HOME to another disk",
    )
    from ..devices.hardware import detect

    try:
        device = detect()
        many = f"{device.devices} x " if device.devices > 1 else ""
        yield CheckResult(
            "device", True, f"{device.device}: {many}{device.name}, {device.memory / 2**30:.0f} GiB, {device.cores} cores"
        )
    except ClipftError as error:
        yield CheckResult("device", False, error.why, error.fix)
    if low_power():
        yield CheckResult(
            "power", False, "low-power mode is on: training takes about twice as long", "sudo pmset -a lowpowermode 0"
        )


def low_power() -> bool:
    """Whether a Mac runs in low-power mode."""
    if platform.system() != "Darwin":
        return False
    try:
        shown = subprocess.run(["pmset", "-g"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.split()[:2] == ["lowpowermode", "1"] for line in shown.splitlines())


def check_connections(member: Membership) -> Iterator[CheckResult]:
    """Airflow, MLflow and the data, each as this worker."""
    places = member.addresses
    wanted = {
        "airflow": (f"{places['airflow']}/edge_worker/v1/health", (200,)),
        "mlflow": (f"{places['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1", (200,)),
        "data": (f"{places['data']}/datasets.git/HEAD", (200, 404)),  # before the first version there is no repository
        "objects": (f"{places['data']}/objects/{NO_OBJECT}", (404,)),
    }
    for name, (url, good) in wanted.items():
        try:
            answer = httpx.get(url, auth=(member.name, member.secret), timeout=20, verify=member.ca or True)
        except httpx.TransportError as error:
            yield CheckResult(name, False, f"{url} does not answer ({error or type(error).__name__})", f"curl -v {url}")
            continue
        right = answer.status_code in good and "turned" not in answer.text
        note = "; nothing is there yet" if name == "data" and answer.status_code == 404 else ""
        if right:
            yield CheckResult(name, True, url.partition("?")[0].removesuffix(f"/{NO_OBJECT}") + note)
        else:
            yield CheckResult(
                name,
                False,
                f"{url} answered {answer.status_code}: {answer.text[:200]}",
                "see the control plane: `clipft doctor`",
            )

"""The checks of what this process stands on: tables, disk, clock, packages, secrets, device."""

import re
import shutil
import stat
import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from ...core.settings import settings
from ...data import pseudonyms
from .. import databases, restore
from ..installation import human_size, is_embedded
from .findings import LOOK, NONE, OK, WRONG, Outcome, depends_on, get

NEEDED = 3 * 2**30  # bytes of free disk that a run needs
SKEW = 10.0  # seconds that two clocks may differ; tokens are valid from the second they are made


def database(database: databases.Database) -> Callable[[], Outcome]:
    def check() -> Outcome:
        restore.refuse_half_restored()
        now = database.revision()
        if not now:
            return NONE, "no tables yet"
        known, newest = databases.known_revisions(database.name)
        if known and now not in known:
            return WRONG, f"a newer release made them ({now})", "Install that release, or restore the backup made before it."
        if known and now not in newest:
            return WRONG, f"they are of an older release ({now})", "make up" if is_embedded() else "clipft upgrade"
        return OK, f"{human_size(database.size())}"

    return check


def disk() -> Outcome:
    root = settings().root
    there = next(p for p in (root, *root.parents) if p.exists())
    use = shutil.disk_usage(there)
    said = f"{human_size(use.free)} free of {human_size(use.total)}"
    if use.free < NEEDED:
        return WRONG, said, "clipft gc shows what may go, clipft gc --yes removes it"
    if use.free < 0.1 * use.total:
        return LOOK, said, "clipft gc shows what may go"
    return OK, said


def erasures() -> Outcome:
    """Erasures that were cut short: what they erase is still in caches, reports or the store."""
    from ..erase.journal import unfinished  # it loads MLflow

    if not (found := unfinished()):
        return NONE, "none is under way"
    fix = "clipft erase finishes it. Where one is at work now, wait."
    return WRONG, f"erasure {found[0].id} of {found[0].at} is not finished", fix


def clock() -> Outcome:
    """Beside the clock of the machine that Airflow's API runs on."""
    with depends_on("Airflow"):
        answer = get(settings().airflow_url, "/api/v2/version")
    told = answer.headers.get("date")
    if not told:
        return NONE, "Airflow does not tell the time"
    skew = time.time() - parsedate_to_datetime(told).timestamp()
    if abs(skew) > SKEW:
        return (
            WRONG,
            f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} Airflow’s",
            "Turn on time synchronization (NTP).",
        )
    return OK, "as Airflow’s, within a second or two"


def packages() -> Outcome:
    wanted, there = _locked(), installed()
    other = [
        f"{name} {there[name]} instead of {locked}"
        for name, locked in sorted(wanted.items())
        if name in there and there[name].split("+")[0] != locked  # what is not there is of another role
    ]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        return WRONG, ", ".join(other[:3]) + more, "make setup" if is_embedded() else "Build the image anew."
    return OK, f"as {'the lock' if len(wanted) > 50 else 'clipft'} says"


def installed() -> dict[str, str]:
    """Versions by package, as the folders' names tell: opening three hundred files takes seconds on a busy machine."""
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for place in reversed(sys.path):
        for info in Path(place).glob("*.dist-info") if place else ():
            name, _, number = info.name.removesuffix(".dist-info").rpartition("-")
            found[canonicalize_name(name)] = number
    return found


def _locked() -> dict[str, str]:
    """Versions by package: of the lock beside this code, else those that the installed clipft pins itself."""
    lock = Path(__file__).resolve().parents[3] / "requirements.lock"
    if lock.exists():
        entries = lock.read_text().splitlines()
    else:
        try:
            entries = requires("clipft") or []
        except PackageNotFoundError:
            entries = []
    found: dict[str, str] = {}
    for entry in entries:
        name, _, marker = entry.partition(";")
        match = re.fullmatch(r"\s*([\w.-]+)(?:\[[^]]*\])?==([\w.+!]+)\s*", name)
        if match and _applies(marker):
            found[match[1]] = match[2].split("+")[0]
    return found


def _applies(marker: str) -> bool:
    from packaging.markers import InvalidMarker, Marker

    if not marker.strip() or "extra" in marker:
        return True
    try:
        return Marker(marker).evaluate()
    except InvalidMarker:
        return False


def modes() -> Outcome:
    root = settings().root
    names = ("secrets.json", "stack.env", "alert-token", "airflow/passwords.json", "worker.env", pseudonyms.KEY_FILE)
    secret = [root / name for name in names]
    there = [p for p in secret if p.exists()]
    loose = [p for p in there if stat.S_IMODE(p.stat().st_mode) & 0o077]
    if loose:
        return WRONG, f"{', '.join(p.name for p in loose)} can be read by others", f"chmod 600 {' '.join(map(str, loose))}"
    if damage := pseudonyms.find_damage(root / pseudonyms.KEY_FILE):
        return WRONG, f"{pseudonyms.KEY_FILE} is damaged: {damage}", "Put it back from a backup: keys/pseudonyms.key in it."
    return (OK, f"{len(there)} files, readable by their owner only") if there else (NONE, "none are kept in files here")


def device() -> Outcome:
    if settings().accelerator_executor:
        return NONE, f"training and evaluation go to queue {settings().accelerator_queue}"
    from importlib.util import find_spec

    if not find_spec("torch"):
        return NONE, "PyTorch is not installed here"
    from ...devices import hardware

    machine = hardware.detect()
    return OK, f"{machine.device}, {machine.name}, {machine.cores} cores, {human_size(machine.memory)} for training"

"""New releases bring new tables: a backup first, then the migrations; and never a step back, which no program here can take."""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import rename_suffix
from ..core.settings import settings
from . import airflow_program, backup, databases, restore
from .installation import maintenance_lock, versions

LAYOUT = 2  # raise it when files of a home get other names
RENAMED_DAGS = {"clipft_care": "clipft_maintenance"}  # old → new


@dataclass(frozen=True)
class Step:
    """A database whose tables are of an older release than what is installed."""

    database: databases.Database
    now: str
    then: str


def due() -> list[Step]:
    """Databases that the installed releases would change.

    Raises:
        ClipftError: one is of a newer release than is installed here, or a restore was cut short.
        TransientError: one does not answer.
    """
    restore.refuse_half_restored()
    steps = []
    for database in databases.all_databases():
        now = database.revision()
        known, newest = databases.known_revisions(database.name)
        if now and known and now not in known:
            here = versions().get(databases.HISTORY[database.name][0], "")
            raise ClipftError(
                f"database {database.name}",
                f"a newer release than {here} made its tables ({now}), and there is no way back for them",
                "Install the release that was here before; or restore the backup made before that upgrade into a new home "
                "(`clipft restore`), with this release.",
                code="database.newer_release",
            )
        if now and known and now not in newest:
            steps.append(Step(database, now, "/".join(sorted(newest))))
    return steps


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did.

    Attributes:
        backup: of the databases as they were; None where no table changed.
        notes: what it renamed, and what is left for a person to do.
    """

    backup: Path | None
    notes: list[str]


def upgrade(backups: Path | None = None) -> Upgraded:
    """Bring an installation to this release: files by the names of today, and the tables of Airflow, MLflow and the studies created
    or migrated; before tables that exist are changed, they are backed up.

    Args:
        backups: folder of such backups; default: `backups` under home.
    Raises: ClipftError as `due` does, or with the words of the program that failed; the backup stays.
    """
    with maintenance_lock("upgrade"):
        steps = due()
        notes = [*_rename_files(), *_renamed_dags()]
        made = None
        if steps:
            names = ", ".join(f"{s.database.name} {s.now} → {s.then}" for s in steps)
            made = (backups or settings().folder("backups")) / f"before-upgrade-{datetime.now():%Y%m%d-%H%M%S}"
            say(f"Tables change ({names}). First a backup of the databases: {made}")
            backup.make_backup(made, only_databases=True)
        try:
            _migrate({s.database.name for s in steps})
        except ClipftError as error:
            fix = f"{error.fix} The databases as they were: {made}" if made else error.fix
            raise ClipftError(error.what, error.why, fix, code=error.code) from error
    return Upgraded(made, notes)


def _rename_files() -> list[str]:
    """Files that an earlier release called otherwise; what was renamed before is not found again."""
    root, notes = settings().root, []
    if count := rename_suffix(root / "captures", ".picture", ".image"):
        notes.append(f"{count} captured images are called .image now.")
    return notes


def _renamed_dags() -> list[str]:
    """DAGs that an earlier release called otherwise and that a person had switched on."""
    database = airflow_program.database()
    if "dag" not in database.tables():
        return []
    notes = []
    for old, new in RENAMED_DAGS.items():
        on = "dag where not is_paused and dag_id ="
        if database.count(f"{on} '{old}'") and not database.count(f"{on} '{new}'"):
            notes.append(f"The DAG {old} was on and is called {new} now: switch {new} on in Airflow, and delete {old} there.")
    return notes


def _migrate(changed: set[str]) -> None:
    settings().folder("mlflow")
    settings().folder("airflow")
    mlflow = next((d for d in databases.all_databases() if d.name == "mlflow"), None)
    jobs = [["mlflow", "db", "upgrade", mlflow.url]] if mlflow else []
    if "tuning" in changed:
        jobs.append(["optuna", "storage", "upgrade", "--storage", settings().studies])
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    started = [
        (job, subprocess.Popen(job, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)) for job in jobs
    ]
    try:
        airflow_program.program("db", "migrate")
    finally:
        ended = [(job, process.communicate()[0], process.returncode) for job, process in started]
    for job, said, code in ended:
        if code:
            raise ClipftError(
                f"`{' '.join(job[:3])}`", f"it failed: {' '.join(said.strip().splitlines()[-2:])}", code="ops.program_failed"
            )

"""New releases bring new tables: a backup first, then the migrations; and never a step back, which no program here can take."""

import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..core.console import say
from ..core.errors import ClipftError
from ..core.settings import settings
from . import airflow_program, backup, databases, restore
from .installation import alone, versions


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
        Transient: one does not answer.
    """
    restore.refuse_half_restored()
    steps = []
    for database in databases.all_of_them():
        now = database.revision()
        known, newest = databases.known_revisions(database.name)
        if now and known and now not in known:
            here = versions().get(databases.HISTORY[database.name][0], "")
            raise ClipftError(
                f"database {database.name}",
                f"a newer release than {here} made its tables ({now}), and there is no way back for them",
                "Install the release that was here before; or restore the backup made before that upgrade into a new home "
                "(`clipft restore`), with this release.",
            )
        if now and known and now not in newest:
            steps.append(Step(database, now, "/".join(sorted(newest))))
    return steps


def upgrade(backups: Path | None = None) -> Path | None:
    """Create or migrate the tables of Airflow, MLflow and the studies; before tables that exist are changed, back them up.

    Args:
        backups: folder of such backups; default: `backups` under home.
    Returns: the backup, when one was made.
    Raises: ClipftError as `due` does, or with the words of the program that failed; the backup stays.
    """
    with alone("upgrade"):
        steps = due()
        made = None
        if steps:
            names = ", ".join(f"{s.database.name} {s.now} → {s.then}" for s in steps)
            made = (backups or settings().folder("backups")) / f"before-upgrade-{datetime.now():%Y%m%d-%H%M%S}"
            say(f"Tables change ({names}). First a backup of the databases: {made}")
            backup.taken(made, only_databases=True)
        try:
            _migrate({s.database.name for s in steps})
        except ClipftError as error:
            fix = f"{error.fix} The databases as they were: {made}" if made else error.fix
            raise ClipftError(error.what, error.why, fix) from error
    return made


def _migrate(changed: set[str]) -> None:
    settings().folder("mlflow")
    settings().folder("airflow")
    mlflow = next((d for d in databases.all_of_them() if d.name == "mlflow"), None)
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
            raise ClipftError(f"`{' '.join(job[:3])}`", f"it failed: {' '.join(said.strip().splitlines()[-2:])}")

"""A backup put back into an installation that holds nothing.

Everything is checked first, byte by byte. Then each part is built beside its place and moved there; a note in the home says which
parts are on their way, so that a restore that was killed begins again where it was, and nothing starts on half an installation.
"""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from packaging.version import Version

from ..core.console import say
from ..core.errors import ClipftError
from ..core.files import atomic_write
from ..core.settings import settings
from . import databases
from .backup import KEYS, SECRETS, verify
from .backup_manifest import Manifest
from .installation import human_size, is_embedded, maintenance_lock, start_command, versions

FILES = {"secrets": SECRETS, "keys": KEYS}  # parts of single files of home
UNDERWAY = "restoring.json"


def restore(folder: Path, *, secrets: bool = False) -> Manifest:
    """Put the backup at `folder` into this installation, which must be empty.

    Args:
        secrets: put its secrets back too (they must have been taken along).
    Raises:
        ClipftError: the backup is damaged or of newer versions, or the installation holds something; nothing was changed.
        TransientError: a database does not answer.
    """
    folder = folder.expanduser().absolute()
    with maintenance_lock("restore"):
        made = _verified(folder)
        todo = _list_parts(folder, made, secrets)
        done = _start_or_resume(folder, todo)
        for name in todo:
            if name not in done:
                _remove_partial(name)
                _restore_part(name, folder, made)
                done.append(name)
                _save_progress(folder, done)
        (settings().root / UNDERWAY).unlink()
    return made


def refuse_half_restored() -> None:
    """Raises ClipftError while a restore that was cut short waits to be finished."""
    note = settings().root / UNDERWAY
    if note.exists():
        source = json.loads(note.read_text())["backup"]
        raise ClipftError(
            f"installation {settings().root}",
            "a restore was cut short",
            f"Finish it: clipft restore {source}",
            code="restore.unfinished",
        )


def _verified(folder: Path) -> Manifest:
    made = Manifest.read(folder)
    here = versions()
    for name, version in made.versions.items():
        if name in here and Version(version) > Version(here[name]):
            raise ClipftError(
                f"backup {folder}",
                f"{name} {version} made it and {here[name]} is installed here, which cannot read its tables",
                "Install the release that made it (or a later one), restore with that, and stay with it.",
                code="backup.newer_release",
            )
    for name, revision in made.revisions.items():
        known, _ = databases.known_revisions(name)
        if known and revision and revision not in known:
            raise ClipftError(
                f"backup {folder}",
                f"its {name} database is of a newer release than this",
                "Install that release.",
                code="backup.newer_release",
            )
    _, problems = verify(folder)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ClipftError(
            f"backup {folder}",
            f"{problems[0]}{more}",
            f"`clipft backup --verify {folder}` lists all. Use another backup.",
            code="backup.damaged",
        )
    return made


def _list_parts(folder: Path, made: Manifest, secrets: bool) -> list[str]:
    """What is put back, in order: what is referred to before what refers to it."""
    if secrets and not made.holds("secrets"):
        raise ClipftError(
            f"secrets of {folder}",
            "they were not taken along",
            "Leave --with-secrets out: new ones are made.",
            code="restore.no_secrets",
        )
    wanted = ["secrets"] if secrets else []
    wanted += [name for name in ("keys", "dvc-remote", "artifacts", "captures", "runs") if made.holds(name)]
    if made.holds("dvc-remote") and "://" in settings().remote:
        fix = f"Copy {folder / 'dvc-remote'} to {settings().remote} with that store's own program, or set CLIPFT_DVC_REMOTE to a folder."
        raise ClipftError(
            f"backup {folder}",
            "its images lie in a folder and this installation's in an object store",
            fix,
            code="restore.other_kind",
        )
    wanted += ["datasets"] if made.holds("datasets.bundle") else []
    for database in reversed(databases.all_databases()):
        other = f"databases/{database.name}.{'dump' if database.file else 'db'}"
        if made.holds(other):
            kind = "SQLite" if database.file else "Postgres"
            fix = "Restore it into an installation of its own kind."
            raise ClipftError(
                f"backup {folder}", f"its {database.name} database is not {kind}, as here", fix, code="restore.other_kind"
            )
        if made.holds(f"databases/{database.name}.{'db' if database.file else 'dump'}"):
            wanted.append(f"database {database.name}")
    return wanted


def _start_or_resume(folder: Path, todo: list[str]) -> list[str]:
    """What an earlier attempt with the same backup has done. Refuses an installation that holds anything else."""
    note = settings().root / UNDERWAY
    if note.exists():
        earlier = json.loads(note.read_text())
        if earlier["backup"] != str(folder):
            raise ClipftError(
                f"installation {settings().root}",
                "a restore was cut short",
                f"Finish it: clipft restore {earlier['backup']}",
                code="restore.unfinished",
            )
        return list(earlier["done"])
    for name in todo:
        if held := _content_of(name):
            raise ClipftError(
                f"installation {settings().root}",
                f"it is not empty: {held}",
                "Set CLIPFT_HOME to a new folder." if is_embedded() else "Restore into fresh databases and volumes.",
                code="restore.not_empty",
            )
    _save_progress(folder, [])
    return []


def _save_progress(folder: Path, done: list[str]) -> None:
    atomic_write(settings().root / UNDERWAY, json.dumps({"backup": str(folder), "done": done}))


def _database(name: str) -> databases.Database:
    return next(d for d in databases.all_databases() if d.name == name.removeprefix("database "))


def _place(name: str) -> Path:
    if name == "datasets":
        return settings().working_copy
    root = settings().root
    return {"dvc-remote": Path(settings().remote), "artifacts": root / "mlflow" / "artifacts"}.get(name, root / name)


def _places(name: str) -> list[Path]:
    return [settings().root / file for file in FILES[name]] if name in FILES else [_place(name)]


def _content_of(name: str) -> str:
    """What there is already at a part's place; "" for nothing."""
    if name.startswith("database "):
        database = _database(name)
        return f"{database.name} has tables in {database.address}" if database.tables() else ""
    for place in _places(name):
        if any(place.iterdir()) if place.is_dir() else place.exists():
            return str(place)
    return ""


def _remove_partial(name: str) -> None:
    """Remove what a killed attempt left of a part: it was empty when that attempt began."""
    if name.startswith("database "):
        database = _database(name)
        if database.file:
            database.file.unlink(missing_ok=True)
        return  # Postgres takes a dump in one transaction
    for place in _places(name):
        if not place.is_dir():
            place.unlink(missing_ok=True)
            continue
        for child in place.iterdir():  # the folder itself may be where a volume is mounted
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def _restore_part(name: str, folder: Path, made: Manifest) -> None:
    try:
        if name.startswith("database "):
            database = _database(name)
            if database.tables():
                return  # Postgres has it whole, and the attempt was killed before it noted that
            copy = folder / "databases" / f"{database.name}.{'db' if database.file else 'dump'}"
            if database.name == "mlflow" and database.file:
                copy = _relocated(copy, Path(made.home))
            database.fill_from(copy)
        elif name == "datasets":
            from ..data import repository

            repository.unbundle(folder / "datasets.bundle")
        elif name in FILES:
            for file in filter(made.holds, (f"{name}/{file}" for file in FILES[name])):
                atomic_write(settings().root / Path(file).name, (folder / file).read_bytes(), mode=0o600)
        else:
            place = _place(name)
            part = place.with_name(place.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(folder / name, part, copy_function=shutil.copyfile)
            _move_into(part, place)
    except OSError as error:
        raise ClipftError(
            f"restore of {name}",
            f"it cannot be written: {error.strerror or error}",
            "Mend that and run the same again.",
            code="restore.not_writable",
        ) from error
    size = sum(f["bytes"] for n, f in made.files.items() if n.startswith(name.replace("database ", "databases/")))
    say(f"Restored: {name}" + (f", {human_size(size)}" if size else ""))


def _move_into(built: Path, place: Path) -> None:
    """Move a folder to its place, which may be there already and empty: a volume's, say."""
    if not place.exists():
        return os.replace(built, place)
    for child in list(built.iterdir()):
        shutil.move(child, place / child.name)
    built.rmdir()


def _relocated(copy: Path, old: Path) -> Path:
    """MLflow's database with the addresses of its artifacts as they are in this home: they are kept as absolute paths."""
    new = settings().root
    part = settings().folder("mlflow") / "moved.part"
    shutil.copyfile(copy, part)
    if old == new:
        return part
    before, after = ((home / "mlflow" / "artifacts").as_uri() for home in (old, new))
    with closing(sqlite3.connect(part)) as there:
        for (table,) in there.execute("select name from sqlite_master where type = 'table'").fetchall():
            for column in there.execute(f'pragma table_info("{table}")').fetchall():
                if "CHAR" in column[2].upper() or "TEXT" in column[2].upper():
                    there.execute(
                        f'update "{table}" set "{column[1]}" = ? || substr("{column[1]}", ?) where substr("{column[1]}", 1, ?) = ?',
                        (after, len(before) + 1, len(before), before),
                    )
        there.commit()
    return part


def next_steps(made: Manifest) -> list[str]:
    """What a person does next."""
    lines = [f"{what} is not in the backup and is used where it was: {where}" for what, where in made.references.items()]
    return [*lines, f"Now `{start_command()}`: it brings the databases to this release, and work that was cut goes on."]

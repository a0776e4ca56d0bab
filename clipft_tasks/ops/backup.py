"""A folder with everything that cannot be made again, taken while the installation runs.

    manifest.json      versions, sizes and checksums of all the rest; written last
    databases/         Airflow, MLflow, tuning studies: one moment's state of each (`.db` of SQLite, `.dump` of Postgres)
    datasets.bundle    the git repository of data sets
    dvc-remote/        its images, where the remote is a folder
    artifacts/         MLflow's, where they lie under home
    captures/, runs/   captured images and their labels; results of stages run by hand
    keys/              of pseudonyms, without which a patient would count as another one; of the server's clients (their digests)
    secrets/           only when asked for

What refers to something is taken before what it refers to: Airflow, studies, MLflow, data sets, their images, artifacts.
Images and artifacts are written before anything names them and only `clipft gc` removes them, which waits; so whatever a
database in the backup names is in it. A folder without a manifest is no backup: a backup that is cut short leaves none.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..core.console import progress, say
from ..core.errors import ClipftError
from ..core.settings import settings
from ..data.pseudonyms import KEY_FILE
from . import databases
from .backup_manifest import MANIFEST, NONE, Earlier, Manifest, file_digests
from .installation import folder_size, human_size, is_embedded, maintenance_lock, versions

KEYS = (KEY_FILE, "server-keys.json")
SECRETS = ("secrets.json", KEY_FILE)  # an earlier release took that key for a secret
COPIED = ("dvc-remote", "artifacts", "captures", "runs")  # folders of which files are taken as they are
SPARE = 64 * 2**20  # bytes that a disk keeps free


def backup(
    folder: Path,
    *,
    secrets: bool = False,
    captures: bool = True,
    only_databases: bool = False,
    since: Path | None = None,
) -> Manifest:
    """Make a backup at `folder`, which appears when it is whole.

    Args:
        since: an earlier backup, on the same disk. A file with the same bytes there becomes a second name of that one (a hard link), so
            that only what changed takes space. Each of the two is whole by itself, and either may be deleted.
        secrets: take the installation's secrets along (files of mode 0600).
        captures: take captured images along.
        only_databases: what a migration changes, and nothing else.
    Raises:
        ClipftError: there is something at `folder`, the disk is full, something cannot be read; nothing is left behind.
        TransientError: a database does not answer.
    """
    folder = folder.expanduser().resolve()
    with maintenance_lock("backup"):
        return make_backup(folder, secrets=secrets, captures=captures, only_databases=only_databases, since=since)


def make_backup(
    folder: Path, *, secrets: bool = False, captures: bool = True, only_databases: bool = False, since: Path | None = None
) -> Manifest:  # fmt: skip
    """The same, for a caller that holds the maintenance lock."""
    _check_place(folder)
    earlier = Earlier(since, Manifest.read(since).files) if since else NONE
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a backup that was killed
    try:
        part.mkdir(mode=0o700, parents=True)
        _check_space(part, only_databases, earlier)
        made = Manifest(datetime.now(UTC).isoformat(timespec="seconds"), str(settings().root), versions())
        _databases(part, made)
        if not only_databases:
            _datasets(part, made)
            _remote(part, made, earlier)
            _artifacts(part, made, earlier)
            if captures and not is_embedded():
                made.references["captures"] = "the servers' own disk (volume `server`)"
            elif captures:
                _copy_tree(settings().root / "captures", part, "captures", made, earlier, wanted=_is_whole_capture)
            _copy_tree(settings().root / "runs", part, "runs", made, earlier)
            _keys(part, made)
        if secrets:
            _secrets(part, made)
        made.write(part)
        _sync(part / MANIFEST)
        os.replace(part, folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        where = f" ({error.filename})" if error.filename else ""
        raise ClipftError(
            f"backup {folder}",
            f"it cannot be written: {error.strerror or error}{where}",
            "Give it another place.",
            code="backup.not_writable",
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return made


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Look at every byte of a backup. Returns its manifest and what is wrong with it.

    Raises: ClipftError when it has no readable manifest.
    """
    made, problems = Manifest.read(folder), []
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()} - {MANIFEST}
    problems += [f"{name} is not in the manifest" for name in sorted(there - set(made.files))]
    for name, known in progress(sorted(made.files.items()), "files checked", len(made.files)):
        path = folder / name
        try:
            if path.is_symlink() or not path.is_file():
                problems.append(f"{name} is missing")
            elif path.stat().st_size != known["bytes"]:
                problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {known['bytes']:,}")
            elif file_digests(path)[0] != known["sha256"]:
                problems.append(f"{name} is not as it was written")
            elif wrong := _find_damage(path):
                problems.append(f"{name}: {wrong}")
        except OSError as error:
            problems.append(f"{name} cannot be read: {error.strerror}")
    return made, problems


def _find_damage(path: Path) -> str:
    if path.parent.name == "databases":
        return databases.find_damage(path) if path.suffix == ".db" else databases.find_dump_damage(path)
    return ""


# Parts ---------------------------------------------------------------------------------------------------------------


def _databases(part: Path, made: Manifest) -> None:
    (part / "databases").mkdir()
    for database in databases.all_databases():
        if not database.tables():
            continue
        made.revisions[database.name] = database.revision()
        _record(part, database.copy(part / "databases"), made)
        say(f"Database {database.name}: {human_size(made.files[_name(part, database)]['bytes'])}")


def _name(part: Path, database: databases.Database) -> str:
    return f"databases/{database.name}.{'db' if database.file else 'dump'}"


def _datasets(part: Path, made: Manifest) -> None:
    from ..data import repository

    target = part / "datasets.bundle"
    if repository.bundle(target):
        _record(part, target, made)


def _remote(part: Path, made: Manifest, earlier: Earlier) -> None:
    remote = settings().remote
    if "://" in remote:
        made.references["dvc-remote"] = remote
        return
    _copy_tree(Path(remote), part, "dvc-remote", made, earlier, content_named=True)


def _artifacts(part: Path, made: Manifest, earlier: Earlier) -> None:
    root = settings().root / "mlflow" / "artifacts"
    if root.is_dir():
        _copy_tree(root, part, "artifacts", made, earlier)
    if settings().mlflow_uri and not any(name.startswith("artifacts/") for name in made.files):
        made.references["artifacts"] = f"the artifact store of MLflow at {settings().mlflow_uri}"


def _keys(part: Path, made: Manifest) -> None:
    _copy_files(KEYS, part, "keys", made)
    elsewhere = {"key of pseudonyms": settings().pseudonyms_key, "keys of the server's clients": settings().server_keys}
    made.references |= {what: where for what, where in elsewhere.items() if where}


def _copy_files(names: Sequence[str], part: Path, folder: str, made: Manifest) -> None:
    """Copy what there is of some files of home, for their owner only."""
    for name in names:
        if (source := settings().root / name).exists():
            (part / folder).mkdir(mode=0o700, exist_ok=True)
            _copy(source, part / folder / name)
            _record(part, part / folder / name, made)


def _secrets(part: Path, made: Manifest) -> None:
    _copy_files([name for name in SECRETS if name not in KEYS], part, "secrets", made)
    if not made.holds("secrets"):
        made.warnings.append(f"{settings().root} holds no secrets; a team's are in the .env of the host, which is kept by hand")


def _is_whole_capture(path: Path) -> bool:
    """Is it an image with its JSON, or the other way round? What is being written is left out."""
    return path.suffix in (".json", ".image") and all(path.with_suffix(s).exists() for s in (".json", ".image"))


def _copy_tree(
    source: Path,
    part: Path,
    name: str,
    made: Manifest,
    earlier: Earlier,
    *,
    wanted: Callable[[Path], bool] = lambda path: True,
    content_named: bool = False,
) -> None:
    """Copy a folder's files; those of names that end with `.part` or `.lock` are somebody's work in progress."""
    files = sorted(f for f in _files(source) if f.suffix not in (".part", ".lock") and wanted(f))
    for file in progress(files, f"files of {name} copied", len(files)) if files else []:
        relative = Path(name) / file.relative_to(source)
        try:
            sha256, md5 = earlier.link(file, part / relative, str(relative)) or _copy(file, part / relative)
        except FileNotFoundError:
            continue  # removed since it was listed: nothing names it any more
        except PermissionError as error:
            fix = "Run this as the user that the installation runs as."
            raise ClipftError(
                f"file {file}", f"it cannot be read: {error.strerror}", fix, code="backup.unreadable_file"
            ) from None
        if content_named and file.parent.parent.name == "md5" and file.parent.name + file.name.removesuffix(".dir") != md5:
            made.warnings.append(f"{file} is damaged: its bytes are not what its name says")
        made.files[str(relative)] = {"bytes": (part / relative).stat().st_size, "sha256": sha256}


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, links left out. Raises ClipftError for a folder that cannot be read."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            fix = "Run this as the user that the installation runs as."
            raise ClipftError(
                f"folder {error.filename}", f"it cannot be read: {error.strerror}", fix, code="backup.unreadable_file"
            )

    for root, _, names in os.walk(folder, onerror=refuse):
        yield from (path for name in names if not (path := Path(root) / name).is_symlink())


def _copy(source: Path, target: Path, mode: int = 0o600) -> tuple[str, str]:
    """Copy the bytes, to the disk itself; returns their SHA-256 and MD5."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with source.open("rb") as there, os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
        while block := there.read(2**20):
            sha256.update(block)
            md5.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    return sha256.hexdigest(), md5.hexdigest()


def _record(part: Path, path: Path, made: Manifest) -> None:
    _sync(path)
    path.chmod(0o600)
    made.files[str(path.relative_to(part))] = {"bytes": path.stat().st_size, "sha256": file_digests(path)[0]}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# Before it begins ----------------------------------------------------------------------------------------------------


def _check_place(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClipftError(
            f"backup {folder}",
            "there is something at that place already",
            "Name a new folder for each backup.",
            code="backup.place_taken",
        )
    for kept in (settings().root, Path(settings().remote)):
        if folder.is_relative_to(kept) and not folder.is_relative_to(settings().root / "backups"):
            raise ClipftError(
                f"backup {folder}",
                f"it lies in {kept}, which it is to outlive",
                "Name a folder elsewhere.",
                code="backup.inside_installation",
            )


def _check_space(part: Path, only_databases: bool, earlier: Earlier) -> None:
    needed = sum(d.size() for d in databases.all_databases() if d.tables())
    if not only_databases:
        folders = [settings().root / name for name in ("captures", "runs", "mlflow/artifacts")]
        folders += [] if "://" in settings().remote else [Path(settings().remote)]
        copied = sum(folder_size(f) for f in folders)
        needed += max(0, copied - sum(f["bytes"] for name, f in earlier.files.items() if name.partition("/")[0] in COPIED))
    free = shutil.disk_usage(part).free
    if free < needed + SPARE:
        raise ClipftError(
            f"backup at {part.parent}",
            f"{human_size(needed + SPARE)} are needed there and {human_size(free)} are free",
            "Free some, or name a folder on another disk.",
            code="backup.disk_full",
        )

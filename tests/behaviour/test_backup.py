"""A backup holds everything, is whole or is not there, and comes back in another home as if nothing had happened."""

import contextlib
import errno
import hashlib
import json
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import fixtures.forkserver
import pytest
from click.testing import CliRunner
from conftest import write_images
from fixtures.errors import refuses
from fixtures.live_server import FILES, Server, package, spec, trained, use

from clipft_tasks import tracking
from clipft_tasks.cli.main import main
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import pseudonyms, versioning
from clipft_tasks.ops import backup as backups
from clipft_tasks.ops import backup_series, upgrade
from clipft_tasks.ops import restore as restoring
from clipft_tasks.ops.backup_manifest import Manifest
from clipft_tasks.stages import chain

COMMAND = "from clipft_tasks.cli import main; main()"
IMAGE = "0" * 24 + "-0"
KEY, CLIENTS = bytes(range(32)), '{"format": 1, "keys": []}'


@pytest.fixture(scope="module")
def source(base: Path) -> Path:
    """The home that is backed up: two versions, a captured image, secrets."""
    home = trained(base)
    shelf = home / "captures" / "general"
    shelf.mkdir(parents=True, exist_ok=True)
    (shelf / f"{IMAGE}.image").write_bytes(FILES[0])
    (shelf / f"{IMAGE}.json").write_text(json.dumps({"id": IMAGE, "time": time.time(), "label": "red square"}))
    (shelf / "half.image").write_bytes(b"its JSON is not written yet")
    (home / "secrets.json").write_text('{"password": "tell nobody"}')
    (home / "pseudonyms.key").write_bytes(KEY)
    (home / "server-keys.json").write_text(CLIENTS)
    yield home
    for name in ("secrets.json", "pseudonyms.key", "server-keys.json"):
        (home / name).unlink()
    shutil.rmtree(home / "captures")


@pytest.fixture(scope="module")
def taken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it, through the command, secrets included."""
    folder = tmp_path_factory.mktemp("backup") / "monday"
    with pytest.MonkeyPatch.context() as patch:
        use(source, patch)
        said = CliRunner().invoke(main, ["backup", str(folder), "--with-secrets"], catch_exceptions=False)
        assert said.exit_code == 0, said.output
    settings.cache_clear()
    return folder


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that holds nothing; this process points at it."""
    use(tmp_path / "fresh", monkeypatch)
    yield tmp_path / "fresh"
    settings.cache_clear()


@pytest.fixture
def copy(taken: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taken, tmp_path / "copy"))


# One after the other -------------------------------------------------------------------------------------------------


def kept_once(one: Path, other: Path) -> tuple[int, int]:
    """Files that both backups name and that are there once, and those that are there twice."""
    paths = [p.relative_to(one) for p in one.rglob("*") if p.is_file() and (other / p.relative_to(one)).is_file()]
    same = sum((one / path).samefile(other / path) for path in paths)
    return same, len(paths) - same


def test_a_backup_that_goes_on_from_another_takes_what_changed_and_is_whole_without_it(source, tmp_path, monkeypatch, fresh):
    use(source, monkeypatch)
    monday, tuesday = tmp_path / "monday", tmp_path / "tuesday"
    backups.backup(monday)
    label = source / "captures" / "general" / f"{IMAGE}.json"
    before = label.read_text()
    label.write_text(before.replace("red square", "blue square"))  # of the same length or not: its bytes are others
    weights = next(p for p in (monday / "artifacts").rglob("open_clip_model.safetensors"))
    damaged = weights.relative_to(monday)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a disk error in the earlier one
    try:
        said = CliRunner().invoke(main, ["backup", str(tuesday), "--since", str(monday)], catch_exceptions=False)
    finally:
        label.write_text(before)
    assert said.exit_code == 0, said.output
    once, twice = kept_once(monday, tuesday)
    changed = {"captures/general/" + label.name, str(damaged), "manifest.json"}
    databases = {f"databases/{p.name}" for p in (monday / "databases").iterdir()} | {"datasets.bundle"}
    databases |= {f"keys/{p.name}" for p in (monday / "keys").iterdir()}
    assert once > 20 and twice <= len(changed | databases)
    assert (tuesday / damaged).read_bytes() == whole
    assert json.loads((tuesday / "captures/general" / label.name).read_text())["label"] == "blue square"
    shutil.rmtree(monday)
    made, problems = backups.verify(tuesday)
    assert not problems and made.holds("artifacts") and made.holds("dvc-remote")
    use(tmp_path / "elsewhere", monkeypatch)
    restoring.restore(tuesday)
    assert tracking.champions() == {"general": "1"}


def test_the_oldest_backups_of_this_installation_go_and_nothing_else_does(source, tmp_path, monkeypatch):
    use(source, monkeypatch)
    below = tmp_path / "backups"
    for number in range(3):
        backups.backup(below / f"b{number}", only_databases=True)
        manifest = Manifest.read(below / f"b{number}")
        manifest.made = f"2026-01-0{number + 1}T00:00:00+00:00"
        manifest.write(below / f"b{number}")
    (below / "notes").mkdir()
    shutil.copytree(below / "b0", below / "somebody-elses")
    other = Manifest.read(below / "somebody-elses")
    other.home = "/another/home"
    other.write(below / "somebody-elses")
    assert backup_series.newest(below) == below / "b2" and backup_series.newest(tmp_path / "none") is None
    assert backup_series.prune(below, 0) == []
    assert backup_series.prune(below, 2) == [below / "b0"] and backup_series.prune(below, 2) == []
    assert sorted(p.name for p in below.iterdir()) == ["b1", "b2", "notes", "somebody-elses"]


# Whole ---------------------------------------------------------------------------------------------------------------


ELSEWHERE = """
import hashlib, json, sys
from pathlib import Path
from fixtures.live_server import package, spec
from clipft_tasks import tracking
from clipft_tasks.ops import restore
from clipft_tasks.data import versioning
from clipft_tasks.stages import chain
restore.restore(Path(sys.argv[1]))
done = {}
for name in ("ingest", "validate", "version", "plan", "finetune"):
    done[name] = chain.run_stage(name, spec(Path(sys.argv[2]), 0), done.__getitem__)
print("RESULT" + json.dumps({
    "champions": tracking.champions(),
    "weights": {v: hashlib.sha256((package(v) / "open_clip_model.safetensors").read_bytes()).hexdigest() for v in ("1", "2")},
    "rows": sorted(versioning.fetch(versioning.find("general/v1", "general")).frame["sha256"]),
    "new": done["version"]["new"], "done_before": done["finetune"]["done_before"],
}))
"""


def test_what_is_restored_in_another_home_goes_on_as_if_nothing_had_happened(taken, source, base, fresh):
    """In a program of its own, as on another machine, and with nothing left of the old home."""
    away = source.with_name("away")
    with pytest.MonkeyPatch.context() as patch:
        use(source, patch)
        weights = {v: hashlib.sha256((package(v) / "open_clip_model.safetensors").read_bytes()).hexdigest() for v in ("1", "2")}
        rows = sorted(versioning.fetch(versioning.find("", "general")).frame["sha256"])
    settings.cache_clear()
    source.rename(away)
    try:
        done = fixtures.forkserver.run(ELSEWHERE, taken, base)
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout.rsplit("RESULT", 1)[1])
        # The same spec finds its own work: the data set and the run that there are.
        found = {"champions": {"general": "1"}, "weights": weights, "rows": rows, "new": False, "done_before": True}
        assert told == found and not source.exists()
        assert json.loads((fresh / "captures/general" / f"{IMAGE}.json").read_text())["label"] == "red square"
        assert not (fresh / "captures/general/half.image").exists() and not (fresh / "secrets.json").exists()
        with Server(fresh, poll=1) as server:
            server.ready()
            assert server.live() == {"general": "1"}
            assert server.put("2").status_code == 200  # its answers are those that were recorded with it
    finally:
        away.rename(source)


def test_a_later_data_set_goes_on_from_a_restored_one(taken, base, fresh, tmp_path):
    restoring.restore(taken)
    before, done = versioning.find("", "general"), {}
    again = spec(base, 0).changed({"source": str(write_images(tmp_path / "more", per_class=44))})
    for name in ("ingest", "validate", "version"):
        done[name] = chain.run_stage(name, again, done.__getitem__)
    after = versioning.find("", "general")
    assert (before.tag, after.tag) == ("general/v1", "general/v2")
    assert [len(versioning.fetch(v).frame) for v in (before, after)] == [80, 88]


def test_the_same_patient_has_the_same_pseudonym_and_clients_keep_their_keys_after_a_restore(
    source, fresh, tmp_path, monkeypatch
):
    use(source, monkeypatch)
    backups.backup(tmp_path / "plain")  # as it is made every week: without secrets
    use(fresh, monkeypatch)
    restoring.restore(tmp_path / "plain")
    assert pseudonyms.key() == KEY and pseudonyms.key_path() == fresh / "pseudonyms.key"
    assert (fresh / "server-keys.json").read_text() == CLIENTS and not (fresh / "secrets.json").exists()
    held = (tmp_path / "plain" / "keys" / "pseudonyms.key", fresh / "pseudonyms.key", fresh / "server-keys.json")
    assert {path.stat().st_mode & 0o777 for path in held} == {0o600}
    monkeypatch.setenv("CLIPFT_PSEUDONYMS_KEY", str(tmp_path / "shared.key"))
    settings.cache_clear()
    assert str(tmp_path / "shared.key") in backups.backup(tmp_path / "later").references.values()


def test_the_key_of_pseudonyms_in_a_backup_of_an_earlier_release_comes_back(source, fresh, tmp_path, monkeypatch):
    use(source, monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backups, "KEYS", ())  # then it was among the secrets
        backups.backup(tmp_path / "old", secrets=True)
    assert (tmp_path / "old" / "secrets" / "pseudonyms.key").exists()
    use(fresh, monkeypatch)
    restoring.restore(tmp_path / "old", secrets=True)
    assert pseudonyms.key() == KEY


def test_a_backup_names_its_files_and_their_versions_and_only_its_owner_reads_it(taken):
    made = Manifest.read(taken)
    assert made.versions["clipft"] and made.versions["mlflow"] and made.revisions["mlflow"]
    assert {"databases/mlflow.db", "datasets.bundle", "secrets/secrets.json"} <= set(made.files)
    assert any(name.startswith("dvc-remote/files/md5/") for name in made.files)
    assert (taken / "secrets/secrets.json").stat().st_mode & 0o777 == 0o600 and taken.stat().st_mode & 0o077 == 0
    said = CliRunner().invoke(main, ["backup", "--verify", str(taken)])
    assert said.exit_code == 0 and "is whole" in said.output


def test_secrets_are_taken_and_put_back_only_when_asked_for(source, taken, fresh, tmp_path, monkeypatch):
    restoring.restore(taken, secrets=True)
    assert "tell nobody" in (fresh / "secrets.json").read_text()
    assert (fresh / "secrets.json").stat().st_mode & 0o777 == 0o600
    use(source, monkeypatch)
    backups.backup(tmp_path / "plain")
    held = b"".join(p.read_bytes() for p in (tmp_path / "plain").rglob("*") if p.is_file())
    assert b"tell nobody" not in held
    use(tmp_path / "third", monkeypatch)
    with refuses("restore.no_secrets", tmp_path / "plain"):
        restoring.restore(tmp_path / "plain", secrets=True)


def test_everything_that_the_registry_names_is_in_a_backup_made_while_runs_are_logged(source, tmp_path, monkeypatch):
    """Writers go on: rows in the copied database never name an artifact that the copy lacks."""
    use(source, monkeypatch)
    writer = """
import sys, tempfile, pathlib
from clipft_tasks import tracking
import mlflow
for i in range(10_000):
    run = tracking.get_or_create_run("busy", f"key-{i}", f"run {i}", {})
    page = pathlib.Path(tempfile.mkdtemp()) / "page.txt"
    page.write_text("x" * 1000)
    tracking.client().log_artifact(run.info.run_id, str(page))
    tracking.client().set_tag(run.info.run_id, "whole", "yes")  # last, as stages do
    print(i, flush=True)
"""
    process = fixtures.forkserver.Program(writer)
    try:
        wait_for(lambda: process.out.exists() and len(process.out.read_text().splitlines()) >= 3, process)
        backups.backup(tmp_path / "busy")
    finally:
        process.kill()
        process.wait()
    with contextlib.closing(sqlite3.connect(tmp_path / "busy/databases/mlflow.db")) as there:
        uris = there.execute(
            "select artifact_uri from runs join tags using (run_uuid) where tags.key = 'whole'",
        ).fetchall()
    assert len(uris) >= 2
    old = (settings().root / "mlflow" / "artifacts").as_uri()
    for (uri,) in uris:
        assert (tmp_path / "busy/artifacts" / uri.removeprefix(old + "/") / "page.txt").read_text() == "x" * 1000


# Damaged -------------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    file = next((folder / "dvc-remote").rglob("*/md5/*/*"))
    file.write_bytes(file.read_bytes()[:-1])


def flipped(folder: Path) -> None:
    file = folder / "databases/mlflow.db"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edited(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 1 ', 1).replace(str(3), str(4), 1))


DAMAGE = {
    "a file cut short": (cut, "bytes instead of"),
    "a bit flipped": (flipped, "not as it was written"),
    "a file gone": (lambda f: (f / "datasets.bundle").unlink(), "is missing"),
    "a file that nobody wrote": (lambda f: (f / "artifacts/planted").write_text("x"), "not in the manifest"),
    "a link in place of a file": (
        lambda f: ((f / "datasets.bundle").unlink(), (f / "datasets.bundle").symlink_to("/etc/passwd")),
        "is missing",
    ),
    "a changed manifest": (edited, "not as it was written"),
    "a manifest that is no JSON": (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    "a manifest that is a list": (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_backup_is_found_out_and_changes_nothing(kind, copy, fresh):
    damage, said = DAMAGE[kind]
    damage(copy)
    verified = CliRunner().invoke(main, ["backup", "--verify", str(copy)])
    assert verified.exit_code == 1 and said in verified.output
    with pytest.raises(ClipftError, match=said):
        restoring.restore(copy)
    assert {p.name for p in fresh.iterdir()} <= {"maintenance.lock"} if fresh.exists() else True


def test_a_backup_of_newer_releases_is_refused_with_the_reason(copy, fresh):
    made = Manifest.read(copy)
    made.versions["mlflow"] = "99.1"
    made.write(copy)
    with refuses("backup.newer_release", "mlflow 99.1", "Install the release"):
        restoring.restore(copy)
    made.versions["mlflow"] = "1.0"
    made.revisions["mlflow"] = "of tomorrow"
    made.write(copy)
    with refuses("backup.newer_release", "mlflow database"):
        restoring.restore(copy)
    made.format = 2
    made.write(copy)
    with refuses("backup.newer_release", "format 2"):
        restoring.restore(copy)


def test_an_installation_that_holds_something_is_never_restored_over(taken, source, monkeypatch):
    use(source, monkeypatch)
    before = (source / "mlflow/mlflow.db").read_bytes()
    with refuses("restore.not_empty", "CLIPFT_HOME"):
        restoring.restore(taken)
    assert (source / "mlflow/mlflow.db").read_bytes() == before and not (source / "restoring.json").exists()


# Places --------------------------------------------------------------------------------------------------------------


def test_places_that_are_no_places_for_a_backup(source, taken, tmp_path, monkeypatch):
    use(source, monkeypatch)
    with refuses("backup.place_taken", taken):
        backups.backup(taken)
    for inside in (source / "here", source / "dvc-remote" / "here"):
        with refuses("backup.inside_installation", inside):
            backups.backup(inside)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ClipftError, match="something at that place|cannot be written"):
        backups.backup(tmp_path / "file")
    with pytest.raises(ClipftError, match="cannot be written"):
        backups.backup(tmp_path / "file" / "below")


def test_a_disk_that_is_too_small_is_said_before_anything_is_copied(source, tmp_path, monkeypatch):
    use(source, monkeypatch)
    monkeypatch.setattr(backups.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    with refuses("backup.disk_full", "976.6 KiB are free"):
        backups.backup(tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(source, tmp_path, monkeypatch):
    use(source, monkeypatch)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    done = fixtures.forkserver.run(limit + COMMAND, "backup", tmp_path / "full")
    assert done.returncode == 1 and "Error" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr(backups.os, "fsync", full)
    with refuses("backup.not_writable", "No space left on device"):
        backups.backup(tmp_path / "full")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_named_and_no_backup_is_made(source, tmp_path, monkeypatch):
    use(source, monkeypatch)
    closed = next((source / "dvc-remote").rglob("md5/*/*"))
    really = Path.open

    def refused(self: Path, *arguments: object, **more: object) -> object:
        if self.name == closed.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return really(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", refused)
    with refuses("backup.unreadable_file", closed.name, "Permission denied", "Run this as the user"):
        backups.backup(tmp_path / "closed")
    monkeypatch.undo()
    use(source, monkeypatch)

    def unlisted(folder: Path, onerror: object) -> list[object]:
        onerror(PermissionError(errno.EACCES, "Permission denied", str(folder)))
        return []

    monkeypatch.setattr(backups.os, "walk", unlisted)
    with refuses("backup.unreadable_file", "dvc-remote", "Permission denied", "Run this as the user"):
        backups.backup(tmp_path / "closed")
    assert list(tmp_path.iterdir()) == []


# Killed --------------------------------------------------------------------------------------------------------------


def wait_for(true: Callable[[], bool], process: fixtures.forkserver.Program) -> None:
    until = time.monotonic() + 300
    while not true():
        assert process.poll() is None, process.err.read_text()
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_backup_that_is_killed_is_none_and_the_next_one_is_whole(source, tmp_path, monkeypatch):
    use(source, monkeypatch)
    process = fixtures.forkserver.Program(COMMAND, "backup", tmp_path / "killed")
    wait_for((tmp_path / "killed.part" / "dvc-remote").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    with refuses("backup.not_one", "killed.part"):
        backups.verify(tmp_path / "killed.part")
    backups.backup(tmp_path / "killed")
    assert backups.verify(tmp_path / "killed")[1] == [] and not (tmp_path / "killed.part").exists()


@pytest.mark.parametrize("part", ["dvc-remote", "datasets", "mlflow/mlflow.db"])
def test_a_restore_that_is_killed_starts_nothing_and_is_finished_by_the_same_command(part, taken, fresh):
    process = fixtures.forkserver.Program(COMMAND, "restore", taken)
    wait_for((fresh / part).exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (fresh / "restoring.json").exists():
        with refuses("restore.unfinished", f"clipft restore {taken}"):
            upgrade.due()  # what `make up` asks first
    if (fresh / "restoring.json").exists():
        restoring.restore(taken)
    assert tracking.champions() == {"general": "1"} and (package("1") / "card.json").exists()
    assert not (fresh / "restoring.json").exists()
    assert upgrade.due() == []


def test_one_at_a_time(source, tmp_path, monkeypatch):
    from clipft_tasks.ops.installation import maintenance_lock

    use(source, monkeypatch)
    with maintenance_lock("gc"), refuses("ops.busy"):
        backups.backup(tmp_path / "second")

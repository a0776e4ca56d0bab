"""Dataset versions, with real git and DVC: immutable, small steps, whole or not at all, the same on every machine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fixtures.forkserver
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import made_image, write_images
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.cli.main import main
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import repository, shards, versioning
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, version


def spec_of(table: Path) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "source": str(table)})


def made(table: Path) -> dict:
    """Ingest a table and make a version of it."""
    return version.run(spec_of(table), ingest.run(spec_of(table)).staging)


def staged(table: Path) -> str:
    return ingest.run(spec_of(table)).staging


def splits(tag: str) -> dict[str, str]:
    frame = versioning.read_manifest(versioning.find(tag, "general"))
    return dict(zip(frame["sha256"], frame["split"], strict=True))


def git(cwd: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def rows_of(table: Path) -> list[dict]:
    return pd.read_csv(table, dtype=str, keep_default_na=False).to_dict("records")


def write(table: Path, rows: list[dict], name: str = "images.csv") -> Path:
    pd.DataFrame(rows).to_csv(table.with_name(name), index=False)
    return table.with_name(name)


def images_of(dataset: versioning.Dataset) -> dict[str, bytes]:
    return {row.name: dataset.image_bytes(row) for row in dataset.frame.itertuples(index=False)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Twelve red and twelve blue squares."""
    return write_images(tmp_path / "source", 12)


@pytest.fixture
def machine(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """machine("b") goes on as another machine: a home of its own, the same origin of data sets, the same DVC remote."""
    origin = tmp_path / "origin.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", str(origin))

    def become(name: str) -> Path:
        monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / name))
        monkeypatch.setenv("CLIPFT_DATA_REPO", f"file://{origin}")
        monkeypatch.setenv("CLIPFT_DVC_REMOTE", str(tmp_path / "store"))
        settings.cache_clear()
        return tmp_path / name

    become("a")
    return become


def closed(origin: Path) -> Path:
    """Make an origin refuse every push until the returned file is deleted."""
    hook = origin / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho closed for the night >&2\nexit 1\n")
    hook.chmod(0o755)
    return hook


# What is a new version ------------------------------------------------------------------------------------------------


def test_unchanged_rows_are_the_version_that_there_is(home, table):
    one = made(table)
    assert (one.dataset, one.new, one.rows) == ("general/v1", True, 24) and one.pushed_bytes > 0
    again = made(table)
    assert again == one.model_copy(update={"new": False, "pushed_bytes": 0})
    other_order = write(table, rows_of(table)[::-1], "reversed.csv")
    assert made(other_order).dataset == "general/v1"
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]


def test_a_changed_caption_is_a_new_version_and_the_old_one_stays_as_it_was(home, table):
    made(table)
    before, old = versioning.fetch(versioning.find("general/v1", "general")), splits("general/v1")
    rows = rows_of(table)
    rows[0]["caption"] = "a photo of a red square, a little worn."
    two = made(write(table, rows))
    assert (two.dataset, two.new) == ("general/v2", True)
    newest = versioning.find("", "general")
    assert newest.tag == "general/v2" and newest.card.parents == ["general/v1"]
    assert splits("general/v2") == old
    assert "a little worn" in versioning.fetch(newest).frame["caption"].str.cat()
    after = versioning.fetch(versioning.find("general/v1", "general"))
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert images_of(after) == images_of(before)


def noisy(folder: Path, numbers: range) -> list[dict]:
    """Photos of about 30 kB, as incompressible as real ones."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        noise = np.random.default_rng(number).integers(0, 256, (100, 100, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return [{"image": f"{n}.png", "caption": f"noise number {n}.", "label": f"kind {n % 2}", "group": ""} for n in numbers]


def test_one_percent_of_new_images_pushes_a_few_percent_of_the_bytes(home, tmp_path):
    rows = noisy(tmp_path / "source", range(202))
    table = tmp_path / "source" / "images.csv"
    one = made(write(table, rows[:200]))
    old = splits("general/v1")
    two = made(write(table, rows))
    assert (two.dataset, two.rows) == ("general/v2", 202)
    assert 0 < two.pushed_bytes < 0.03 * one.pushed_bytes  # 1% of images, and both manifests whole
    now = splits("general/v2")
    assert {sha: now[sha] for sha in old} == old and len(now) == 202
    content = images_of(versioning.fetch(versioning.find("general/v2", "general")))
    assert content == {f"{n}.png": (tmp_path / "source" / f"{n}.png").read_bytes() for n in range(202)}


def test_a_image_that_leaves_and_comes_back_keeps_its_split_even_with_another_caption(home, table):
    rows = rows_of(table)
    made(table)
    first = splits("general/v1")
    made(write(table, rows[6:]))
    assert set(splits("general/v2").items()) < set(first.items())
    back = [r | {"caption": "seen again: " + r["caption"]} for r in rows[:6]] + rows[6:]
    assert made(write(table, back)).dataset == "general/v3"
    assert splits("general/v3") == first


def test_a_version_that_does_not_exist_is_answered_with_those_that_do(home, table):
    with refuses("dataset.no_version", "general"):
        versioning.find("", "general")
    made(table)
    with refuses("dataset.not_found", "general/v7", "general/v1"):
        versioning.find("general/v7", "general")
    with refuses("dataset.invalid_tag", "general-7", "<domain>/v<number>"):
        versioning.find("general-7", "general")


def test_domains_count_their_versions_apart(home, table):
    made(table)
    spec = RunSpec.from_flat({"domain": "scientific", "source": str(table)})
    assert version.run(spec, ingest.run(spec).staging).dataset == "scientific/v1"
    assert [v.tag for v in versioning.versions("general")] == ["general/v1"]
    assert len(versioning.fetch(versioning.find("general/v1", "general")).frame) == 24


def test_git_environment_of_a_caller_is_not_taken_for_ours(home, table, tmp_path, monkeypatch):
    """Inside a git hook, GIT_DIR and GIT_INDEX_FILE name the caller's repository."""
    theirs = tmp_path / "theirs"
    git(tmp_path, "init", "--quiet", str(theirs))
    before = sorted(p.relative_to(theirs) for p in theirs.rglob("*"))
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(theirs / ".git" / "index"))
    assert made(table).dataset == "general/v1"
    assert sorted(p.relative_to(theirs) for p in theirs.rglob("*")) == before


def test_a_relative_remote_holds_the_data_and_outlives_the_next_step(home, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPFT_DVC_REMOTE", "store")
    settings.cache_clear()
    assert made(table).pushed_bytes > 0
    assert versioning.versions("general")
    shutil.rmtree(home / "datasets" / ".dvc" / "cache")
    assert len(images_of(versioning.fetch(versioning.find("general/v1", "general")))) == 24


# An origin for several machines ---------------------------------------------------------------------------------------


def test_tags_and_data_arrive_at_the_origin_and_another_machine_gets_the_same_bytes(machine, table, tmp_path):
    origin = tmp_path / "origin.git"
    one = made(table)
    assert git(origin, "tag", "--list") == "general/v1"
    assert git(origin, "rev-parse", "general/v1^{commit}") == git(origin, "rev-parse", "main") == one.revision
    mine = versioning.fetch(versioning.find("general/v1", "general"))

    machine("b")
    theirs = versioning.fetch(versioning.find("", "general"))
    assert theirs.folder != mine.folder and theirs.version.revision == one.revision
    pd.testing.assert_frame_equal(theirs.frame, mine.frame)
    assert images_of(theirs) == images_of(mine)
    for name in theirs.frame["shard"].unique():
        shards.check(theirs.folder / name, name)


def test_another_machine_adds_the_next_version_and_the_first_one_sees_it(machine, table, tmp_path):
    made(table)
    first = splits("general/v1")
    machine("b")
    made_image("red", 77).save(table.parent / "more.png")
    more = [*rows_of(table), {"image": "more.png", "caption": "one more red square.", "label": "red square", "group": ""}]
    two = made(write(table, more))
    assert (two.dataset, two.rows) == ("general/v2", 25)
    machine("a")
    newest = versioning.find("", "general")
    assert newest.tag == "general/v2" and set(first.items()) < set(splits("general/v2").items())
    assert images_of(versioning.fetch(newest))["more.png"] == (table.parent / "more.png").read_bytes()


def test_a_version_that_the_origin_refused_arrives_there_on_the_next_try(machine, table, tmp_path):
    origin = tmp_path / "origin.git"
    versioning.versions("general")
    staging = staged(table)
    hook = closed(origin)
    with pytest.raises(TransientError, match="declined"):
        version.run(spec_of(table), staging)
    assert git(origin, "tag", "--list") == ""
    hook.unlink()
    assert version.run(spec_of(table), staging).dataset == "general/v1"
    assert git(origin, "tag", "--list") == "general/v1"


def test_two_machines_that_make_a_version_at_once_make_two(machine, table, tmp_path):
    origin = tmp_path / "origin.git"
    machine("b")
    versioning.versions("general")
    rows = rows_of(table)
    late = write(table, [r | {"caption": "late: " + r["caption"]} for r in rows], "late.csv")
    staging = staged(late)
    hook = closed(origin)
    with pytest.raises(TransientError):
        version.run(spec_of(late), staging)
    hook.unlink()
    machine("a")
    assert made(table).dataset == "general/v1"
    machine("b")
    assert version.run(spec_of(late), staging).dataset == "general/v2"
    assert git(origin, "tag", "--list").split() == ["general/v1", "general/v2"]
    assert versioning.fetch(versioning.find("general/v1", "general")).frame["caption"].str.startswith("a photo").all()


def test_an_origin_that_is_away_is_worth_another_try(machine, table, tmp_path):
    (tmp_path / "origin.git").rename(tmp_path / "away.git")
    with pytest.raises(TransientError, match=r"origin\.git"):
        versioning.versions("general")
    (tmp_path / "away.git").rename(tmp_path / "origin.git")
    assert versioning.versions("general") == []


def test_a_first_push_that_failed_is_made_up_for(machine, tmp_path):
    hook = closed(tmp_path / "origin.git")
    with pytest.raises(TransientError):
        versioning.versions("general")
    hook.unlink()
    assert versioning.versions("general") == []
    assert git(tmp_path / "origin.git", "rev-parse", "main")


# Other releases -------------------------------------------------------------------------------------------------------


def rewrite_card(repo: Path, change) -> None:
    """Put another card into the tagged commit of `general/v1`, as another release would have written it."""
    path = repo / "general" / "datacard.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    git(repo, "commit", "--all", "--amend", "--no-edit", "--quiet")
    git(repo, "tag", "--annotate", "--force", "general/v1", "--message", "again")


def test_a_card_of_the_release_before_is_read_and_the_next_version_continues_it(home, table):
    made(table)
    card = versioning.find("general/v1", "general").card

    def before(written: dict) -> dict:
        assert written.pop("format") == 3 and written.pop("license") == ""
        for name in ("major", "kept_splits", "parted", "absent"):
            del written[name]
        return written | {"licence": "CC0", "forgotten": 1}

    rewrite_card(home / "datasets", before)
    found = versioning.find("general/v1", "general")
    assert found.card == card.model_copy(update={"license": "CC0"})
    assert made(table).new is False
    rows = rows_of(table)
    rows[0]["caption"] = "a photo of a red square, again."
    assert made(write(table, rows)).dataset == "general/v2"
    assert versioning.find("", "general").card.parents == ["general/v1"]


def test_a_card_of_a_newer_release_is_refused_by_its_tag(home, table):
    made(table)
    rewrite_card(home / "datasets", lambda card: card | {"format": 4, "unheard": "of"})
    with refuses("record.newer_format", "general/v1", "format 4"):
        versioning.find("", "general")


# What a killed process leaves -----------------------------------------------------------------------------------------


def test_a_half_made_commit_is_put_back_and_made_whole(home, table):
    made(table)
    repo = home / "datasets"
    (repo / "general" / "datacard.json").write_text('{"half": ')
    (repo / "general" / "manifest.dvc").unlink()
    (repo / "scientific").mkdir()
    (repo / "scientific" / "datacard.json").write_text("{}")
    git(repo, "add", "general/datacard.json", "scientific/datacard.json")
    for lock in (".git/index.lock", ".git/HEAD.lock", ".git/refs/heads/main.lock", ".dvc/tmp/lock"):
        (repo / lock).write_text("")
    rows = rows_of(table)
    rows[0]["caption"] = "a photo of a red square, again."
    assert made(write(table, rows)).dataset == "general/v2"
    assert git(repo, "status", "--porcelain") == "" and not (repo / "scientific").exists()
    assert len(images_of(versioning.fetch(versioning.find("general/v1", "general")))) == 24


def test_a_commit_that_was_never_tagged_becomes_the_version(home, table):
    staging = staged(table)
    version.run(spec_of(table), staging)
    git(home / "datasets", "tag", "--delete", "general/v1")  # killed between commit and tag
    assert versioning.versions("general") == []
    again = version.run(spec_of(table), staging)
    assert (again.dataset, again.new) == ("general/v1", True)


def test_a_repository_half_created_is_created_whole(home, table):
    repo = home / "datasets"
    repo.mkdir(parents=True)
    git(repo, "init", "--quiet", "--initial-branch", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=repo, check=True)  # killed before the remote was named
    assert made(table).dataset == "general/v1"
    assert repository.remote_bytes() > 0


@pytest.mark.slow
def test_a_process_killed_at_any_step_leaves_no_half_version(home, table):
    """Really killed, at each git and DVC command in turn; the tag appears only with all its bytes, and a new try gets there."""
    code = f"""
import os, sys
from clipft_tasks.data import repository
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import version
left = int(sys.argv[1])
def dying(real):
    def call(repo, command, *rest, **more):
        global left
        if command in ("add", "push", "commit", "tag"):
            if left == 0:
                os.kill(os.getpid(), 9)
            left -= 1
        return real(repo, command, *rest, **more)
    return call
repository.git, repository.dvc = dying(repository.git), dying(repository.dvc)
version.run(RunSpec.from_flat({{"domain": "general", "source": {str(table)!r}}}), sys.argv[2])
"""
    staging = staged(table)
    for steps in range(5):  # dvc add, dvc push, git add, git commit, git tag
        assert fixtures.forkserver.run(code, steps, staging).returncode == -9, steps
        assert versioning.versions("general") == [], steps
    assert version.run(spec_of(table), staging).dataset == "general/v1"
    assert len(images_of(versioning.fetch(versioning.find("", "general")))) == 24


# Bytes that are missing or wrong --------------------------------------------------------------------------------------


def files_of(store: Path) -> list[Path]:
    return [p for p in store.rglob("*") if p.is_file()]


def test_bytes_that_the_remote_lost_are_named_and_nothing_half_stays(machine, table, tmp_path):
    made(table)
    for path in files_of(tmp_path / "store"):
        if path.stat().st_size > 20_000 and path.read_bytes()[257:262] == b"ustar":
            path.unlink()
    home = machine("b")
    with pytest.raises((ClipftError, TransientError), match=r"general/v1.*[0-9a-f]{32}\.tar"):
        versioning.fetch(versioning.find("general/v1", "general"))
    assert not list((home / "cache" / "shards").iterdir())


def test_a_remote_that_is_gone_is_named(machine, table, tmp_path):
    made(table)
    shutil.rmtree(tmp_path / "store")
    machine("b")
    with pytest.raises((ClipftError, TransientError), match="general/v1.*manifest"):
        versioning.fetch(versioning.find("general/v1", "general"))


def test_a_shard_that_changed_in_the_remote_is_not_taken(machine, table, tmp_path):
    made(table)
    for path in files_of(tmp_path / "store"):
        if path.stat().st_size > 20_000 and path.read_bytes()[257:262] == b"ustar":
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-600] + b"x" * 600)
    home = machine("b")
    with refuses("dataset.damaged_shard", ".tar"):
        versioning.fetch(versioning.find("general/v1", "general"))
    assert not list((home / "cache" / "shards").glob("*.tar"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", f"../{'0' * 32}.tar"])
def test_a_manifest_that_points_outside_is_refused_by_fetch_and_by_commit(home, table, name):
    staging = Path(staged(table))
    frame = pd.read_parquet(staging / "manifest.parquet")
    frame.loc[0, "shard"] = name
    whole = (staging / "manifest.parquet").read_bytes()
    frame.to_parquet(staging / "manifest.parquet")
    with refuses("dataset.invalid_shard_name", name):
        version.run(spec_of(table), str(staging))
    assert versioning.versions("general") == []

    (staging / "manifest.parquet").write_bytes(whole)
    version.run(spec_of(table), str(staging))
    found = versioning.find("general/v1", "general")
    versioning.read_manifest(found)
    (cached,) = (home / "cache" / "datasets").rglob("parts/*.parquet")
    cached.unlink()
    frame.to_parquet(cached)
    with refuses("dataset.invalid_shard_name", name):
        versioning.fetch(found)


def test_the_page_of_a_difference_shows_the_images_that_changed_and_opens_offline(home, table):
    rows = rows_of(table)
    made(write(table, rows[:-1]))
    made(write(table, [rows[0] | {"label": "<b>violet</b>"}, *rows[2:]]))
    done = CliRunner().invoke(main, ["diff", "general/v1", "general/v2", "--page", str(home / "diff.html")])
    assert done.exit_code == 0 and "other labels: 1" in done.output
    page = (home / "diff.html").read_text()
    for text in (
        "Added (1)",
        "Removed (1)",
        "Other labels (1)",
        "red square → &lt;b&gt;violet&lt;/b&gt;",
        rows[1]["image"],
        "48",
    ):
        assert text in page
    assert page.count("data:image/jpeg;base64,") == 3 and "http" not in page and "<b>violet" not in page

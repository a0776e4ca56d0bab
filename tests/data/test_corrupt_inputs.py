"""What ingest does with corrupt input: each bad row is listed with its reason, and nothing half-written stays."""

import errno
import io
import os
import resource
import shutil
import struct
import zlib
from pathlib import Path

import fixtures.forkserver
import pandas as pd
import pytest
from conftest import made_image, write_images
from fixtures.errors import refuses

from clipft_tasks.contracts.dataset import LONGEST, shortened
from clipft_tasks.data import shards
from clipft_tasks.stages import ingest
from data.conftest import jsonl, rejected, spec_of, taken


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


def corrupt(folder: Path) -> dict[str, tuple[dict, str]]:
    """One row of each bad kind by image name, and a word of the reason it must be given."""
    whole = io.BytesIO()
    made_image("red", 500, 64).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_text("this is not an image\n" * 20)
    (folder / "zero.png").write_bytes(b"")
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    (folder / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT5\xafm\x1e"
    )
    with (folder / "heavy.png").open("wb") as file:
        file.truncate(33 * 2**20)
    (folder / "directory.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    outside = folder.parent / "outside.png"
    made_image("red", 501).save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    for name, number in (("mute", 502), ("talkative", 503), ("elsewhere", 504)):
        made_image("red", number).save(folder / f"{name}.png")
    plain = {"caption": "a photo of a red square.", "label": "red square", "group": "", "split": ""}
    return {
        "missing.png": (plain, "no such file"),
        "cut.jpg": (plain, "cut short"),
        "text.png": (plain, "not an image"),
        "zero.png": (plain, "0 bytes"),
        "huge.png": (plain, "pixels"),
        "heavy.png": (plain, "bytes, more than the limit"),
        "directory.png": (plain, "not a plain file"),
        "pipe.png": (plain, "not a plain file"),
        "../../etc/passwd": (plain, "leads outside"),
        "../outside.png": (plain, "leads outside"),
        "/etc/passwd": (plain, "absolute"),
        "link.png": (plain, "leads outside"),
        "dangling.png": (plain, "no such file"),
        "": (plain, "not a plain file"),
        "x" * 5000 + ".png": (plain, "too long"),
        "mute.png": (plain | {"caption": "  ", "label": ""}, "neither a caption nor a label"),
        "talkative.png": (plain | {"caption": "word " * 10_000}, "10,000 words"),
        "elsewhere.png": (plain | {"split": "holdout"}, "holdout"),
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_each_bad_row_is_listed_with_its_reason_and_the_good_ones_go_on(home, images, good, kind):
    bad = corrupt(images.parent)
    rows = [{**r, "split": ""} for r in good]
    for at, (name, (fields, _)) in enumerate(bad.items()):
        rows.insert(2 * at, {"image": name, **fields})
    path = images.with_name(f"bad.{kind}")
    if kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        jsonl(path, rows)
    result = ingest.run(spec_of(path))
    assert sorted(taken(result)["name"]) == sorted(r["image"] for r in good)
    listed = rejected(result)
    assert set(listed) == set(map(shortened, bad)) and result.rejected == len(bad)
    for at, (name, (_, word)) in enumerate(bad.items()):
        said = listed[shortened(name)]
        assert word in said["reason"].lower() and len(said["reason"]) <= LONGEST, said
        assert said["where"] == f"bad.{kind} row {2 * at + 1}"


def test_an_exact_duplicate_is_listed_with_the_row_that_it_repeats(home, images, good):
    shutil.copy(images.parent / good[3]["image"], images.parent / "copy.png")
    path = jsonl(images.with_name("twice.jsonl"), [*good, good[0], {**good[3], "image": "copy.png"}])
    result = ingest.run(spec_of(path))
    assert result.rows == len(good) and len(taken(result)) == len(good)
    reasons = [r["reason"] for r in rejected(result).values()]
    assert any(f"duplicate of {good[0]['image']}" in r for r in reasons)
    assert any(f"duplicate of {good[3]['image']}" in r for r in reasons)


def test_one_image_with_two_captions_is_two_rows_of_one_split(home, images, good):
    more = [{**r, "caption": f"another word for {r['label']}"} for r in good]
    frame = taken(ingest.run(spec_of(jsonl(images.with_name("two.jsonl"), good + more))))
    assert len(frame) == 2 * len(good) and frame["name"].is_unique
    assert (frame.groupby("sha256")["split"].nunique() == 1).all()


def test_a_link_that_leads_in_a_circle_is_one_bad_row(home, images, good):
    (images.parent / "circle.png").symlink_to("circle.png")
    result = ingest.run(spec_of(jsonl(images.with_name("c.jsonl"), [*good, {**good[0], "image": "circle.png"}])))
    assert result.rows == len(good) and list(rejected(result)) == ["circle.png"]


def test_a_name_with_a_null_byte_is_one_bad_row(home, images, good):
    result = ingest.run(spec_of(jsonl(images.with_name("n.jsonl"), [*good, {**good[0], "image": "a\0b.png"}])))
    assert result.rows == len(good) and list(rejected(result)) == ["a\0b.png"]


def test_half_a_character_in_a_caption_is_no_reason_to_stop(home, images, good):
    rows = [{**good[0], "caption": "a red \ud83d square"}, *good[1:]]
    result = ingest.run(spec_of(jsonl(images.with_name("s.jsonl"), rows)))
    assert result.rows + result.rejected == len(good) and result.rows >= len(good) - 1


def test_a_file_name_that_is_not_utf_8_is_no_reason_to_stop(home, tmp_path):
    (tmp_path / "tree" / "red").mkdir(parents=True)
    for number in range(6):
        made_image("red", number).save(tmp_path / "tree" / "red" / f"{number}.png")
    (tmp_path / "tree" / "red" / "5.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/tree/red/caf\xe9.png"))
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert result.rows + result.rejected == 6 and result.rows >= 5


def test_images_that_resemble_those_of_two_splits_are_turned_away(home, images, good):
    image = made_image("red", 0, 64)
    image.save(images.parent / "one.png")
    image.resize((80, 80)).save(images.parent / "two.png")
    image.resize((72, 72)).save(images.parent / "three.png")
    row = {**good[0], "split": ""}
    rows = [
        *({**r, "split": ""} for r in good[1:]),
        {**row, "image": "one.png", "split": "train"},
        {**row, "image": "two.png", "split": "test"},
        {**row, "image": "three.png"},
    ]
    result = ingest.run(spec_of(jsonl(images.with_name("near.jsonl"), rows)))
    # A training row gives way to a test row, and what lies between goes to the side that stays.
    assert "its split is train" in rejected(result)["one.png"]["reason"] and result.rejected == 1
    assert taken(result).set_index("name").loc[["two.png", "three.png"], "split"].tolist() == ["test", "test"]


# Nothing to ingest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "code", "named"),
    [
        ("a.csv", "file,caption\nx.png,y\n", "source.missing_columns", "'image'"),
        ("a.csv", "image,group\nx.png,y\n", "source.missing_columns", "data.label_column"),
        ("a.csv", "image,caption\n", "source.no_usable_rows", "a.csv"),
        ("a.csv", "image,caption\nx.png,y\nz.png,y\n", "source.no_usable_rows", "a.csv row 1: no such file"),
        ("a.csv", "", "source.unreadable_file", "a.csv"),
        ("a.csv", b"image,caption\n\xff\xfe\x00.png,y\n", "source.unreadable_file", "a.csv"),
        ("a.jsonl", '{"image": "x.png", "caption"\n', "source.unreadable_file", "a.jsonl"),
        ("a.parquet", "PAR1 but no more", "source.unreadable_file", "a.parquet"),
        ("a.xlsx", "what?", "source.unreadable_file", "a.xlsx"),
    ],
)
def test_a_source_that_gives_nothing_says_why(home, tmp_path, name, content, code, named):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refuses(code, named):
        ingest.run(spec_of(path))


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", "source.not_given"),
        ("gone.csv", "source.not_found"),
        ("gone", "source.unknown"),
        ("s3://bucket/images.csv", "source.not_allowed"),
        ("https://example.org/a.csv", "source.not_allowed"),
    ],
)
def test_a_missing_source_is_named(home, tmp_path, monkeypatch, source, code):
    monkeypatch.chdir(tmp_path)
    with refuses(code, source):
        ingest.run(spec_of(source))


def test_an_empty_folder_is_named(home, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "notes.txt").write_text("later")
    with refuses("source.no_images", tmp_path / "tree"):
        ingest.run(spec_of(tmp_path / "tree"))


def test_an_unknown_domain_is_refused():
    with refuses("spec.invalid", "domain", "culinary"):
        spec_of("a.csv", domain="culinary")


def test_when_all_rows_are_bad_each_reason_is_still_to_be_found(home, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": "x"} for i in range(8)])
    with refuses("source.no_usable_rows", path, "row 1"):
        ingest.run(spec_of(path))
    (listed,) = home.rglob("rejected.jsonl")
    assert len(listed.read_text().splitlines()) == 8


# No space left --------------------------------------------------------------------------------------------------------


def whole_shards_only(home: Path) -> None:
    for path in home.rglob("*.tar"):
        shards.check(path, path.name)


def test_a_full_disk_is_said_plainly_and_leaves_no_half_shard(home, images, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith(".tar"):
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        return real(source, target)

    monkeypatch.setattr(shards.os, "replace", full)
    with refuses("dataset.not_writable", "No space left"):
        ingest.run(spec_of(images))
    whole_shards_only(home)
    monkeypatch.undo()


@pytest.mark.slow
def test_a_file_system_that_fills_up_in_the_middle_leaves_no_half_shard(home, tmp_path):
    """The real thing, in a process whose files may not grow beyond 200 kB: a shard of 600 kB breaks off in the middle."""
    table = write_images(tmp_path / "large", 2)
    for path in table.parent.glob("*.png"):
        label, number = path.stem.split("-")
        made_image(label, int(number), 400).save(path.with_suffix(".bmp"), "BMP")
    table.write_text(table.read_text().replace(".png", ".bmp"))
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from clipft_tasks.spec import RunSpec
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.stages import ingest
from clipft_tasks.data import versioning
versioning.versions("general")
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    ingest.run(RunSpec.from_flat({{"domain": "general", "source": {str(table)!r}}}))
except ClipftError as error:
    print("said:", error)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = fixtures.forkserver.run(code)
    whole_shards_only(home)
    assert not list((home / "staging").rglob("manifest.parquet"))
    assert done.returncode == 0 and "said:" in done.stdout, done.stderr.splitlines()[-1]

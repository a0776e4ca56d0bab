"""ingest: every kind of source gives the same rows; a bad row is named with its reason and the rest goes on."""

import errno
import io
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pandas as pd
import pytest
from conftest import COLOURS, made_picture, write_pictures

from clipft_tasks.data import manifest, shards
from clipft_tasks.errors import ClipftError
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest

PER_CLASS = 12


def spec_of(source: Path | str, **more: object) -> RunSpec:
    return RunSpec.from_flat({"domain": "general", "source": str(source), **more})


def taken(result: dict) -> pd.DataFrame:
    return manifest.read(Path(result["staging"]) / "manifest.parquet")


def rejected(result: dict) -> dict[str, dict[str, str]]:
    lines = (Path(result["staging"]) / "rejected.jsonl").read_text("utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A table of twelve red and twelve blue squares."""
    return write_pictures(tmp_path / "source", PER_CLASS)


@pytest.fixture
def good(pictures: Path) -> list[dict]:
    return pd.read_csv(pictures, dtype=str, keep_default_na=False).to_dict("records")


# Kinds of source ------------------------------------------------------------------------------------------------------


def same_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """What a row is, without where it came from; which split a row gets also depends on the order of the source."""
    return frame[["key", "caption", "label", "width", "height", "mode", "format", "sha256", "phash"]]


@pytest.fixture
def as_csv(home, pictures) -> pd.DataFrame:
    return taken(ingest.run(spec_of(pictures)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "CSV", "JSONL", "Parquet"])
def test_every_kind_of_table_gives_the_same_rows(as_csv, pictures, kind):
    frame = pd.read_csv(pictures, dtype=str, keep_default_na=False)
    path = pictures.with_name(f"other.{kind}")
    match kind.lower():
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(path)
        case "csv":
            frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(taken(ingest.run(spec_of(path))), as_csv)


def test_a_folder_with_texts_beside_the_pictures_gives_the_same_rows(as_csv, pictures, tmp_path):
    for row in as_csv.itertuples():
        folder = tmp_path / "tree" / row.label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures.parent / row.name, folder / row.name)
        (folder / row.name).with_suffix(".txt").write_text(row.caption + "\n")
    found = taken(ingest.run(spec_of(tmp_path / "tree")))
    pd.testing.assert_frame_equal(same_rows(found), same_rows(as_csv))


def test_a_folder_without_texts_takes_its_captions_from_the_labels(home, tmp_path):
    for label in COLOURS:
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(4):
            made_picture(label, number).save(tmp_path / "tree" / label / f"{number}.png")
    assert set(taken(ingest.run(spec_of(tmp_path / "tree")))["caption"]) == {"a photo of a red.", "a photo of a blue."}
    worded = taken(ingest.run(spec_of(tmp_path / "tree", **{"data.caption_template": "one {} thing"})))
    assert set(worded["caption"]) == {"one red thing", "one blue thing"}


def test_subfolders_called_train_val_and_test_are_the_split(home, tmp_path):
    numbers = {"train": range(0, 6), "Val": range(6, 9), "test": range(9, 12)}
    for split, members in numbers.items():
        for label in COLOURS:
            (tmp_path / "tree" / split / label).mkdir(parents=True)
            for number in members:
                made_picture(label, number).save(tmp_path / "tree" / split / label / f"{number}.png")
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert result["counts"] == {"train": 12, "val": 6, "test": 6}
    frame = taken(result)
    assert set(frame["label"]) == set(COLOURS)
    assert [n.split("/")[0].lower() for n in frame["name"]] == frame["split"].tolist()


def test_a_caption_linked_from_outside_the_folder_is_not_read(home, tmp_path):
    (tmp_path / "tree" / "red").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the password is swordfish")
    for number in range(4):
        made_picture("red", number).save(tmp_path / "tree" / "red" / f"{number}.png")
    (tmp_path / "tree" / "red" / "0.txt").symlink_to(tmp_path / "secret.txt")
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert "swordfish" not in taken(result)["caption"].str.cat()


def test_other_column_names_are_named_in_the_spec(as_csv, pictures):
    frame = pd.read_csv(pictures, dtype=str).rename(columns={"image": "file", "caption": "text", "label": "class"})
    frame.to_csv(pictures.with_name("own.csv"), index=False)
    columns = {"data.image_column": "file", "data.caption_column": "text", "data.label_column": "class"}
    found = taken(ingest.run(spec_of(pictures.with_name("own.csv"), **columns)))
    pd.testing.assert_frame_equal(found, as_csv)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "nullable parquet"])
def test_numbers_as_classes_read_the_same_from_every_kind_of_table(home, pictures, good, kind):
    rows = [{**r, "label": i % 2 if i else None} for i, r in enumerate(good)]
    frame = pd.DataFrame(rows)
    path = pictures.with_name("numbers." + kind.split()[-1])
    if kind == "jsonl":
        jsonl(path, rows)
    else:
        (frame.convert_dtypes() if "nullable" in kind else frame).to_parquet(path)
    assert set(taken(ingest.run(spec_of(path)))["label"]) == {"", "0", "1"}


def test_missing_texts_in_a_nullable_parquet_are_empty_texts(home, pictures, good):
    frame = pd.DataFrame(good).convert_dtypes()
    frame["caption"] = frame["caption"].astype("string")
    frame.loc[0, ["caption", "group"]] = pd.NA
    frame.to_parquet(pictures.with_name("n.parquet"))
    result = ingest.run(spec_of(pictures.with_name("n.parquet")))
    assert result["rows"] == 2 * PER_CLASS and set(taken(result)["caption"]) == {
        "a photo of a red square.",
        "a photo of a blue square.",
    }


def test_rows_of_one_group_stay_in_one_split(home, tmp_path):
    frame = taken(ingest.run(spec_of(write_pictures(tmp_path / "grouped", 40, groups=True))))
    assert (frame.groupby("group")["split"].nunique() == 1).all() and frame["split"].nunique() == 3


def test_every_picture_can_be_read_back_from_its_shard(home, pictures):
    result = ingest.run(spec_of(pictures))
    for row in taken(result).itertuples():
        data = shards.read(Path(result["staging"], "shards"), shards.Place(row.shard, row.offset, row.length))
        assert data == (pictures.parent / row.name).read_bytes()


def test_the_same_source_again_gives_the_same_bytes(home, pictures):
    def content(result: dict) -> dict[str, bytes]:
        return {
            str(p.relative_to(result["staging"])): p.read_bytes() for p in Path(result["staging"]).rglob("*") if p.is_file()
        }

    one = content(ingest.run(spec_of(pictures)))
    assert one == content(ingest.run(spec_of(pictures))) and len(one) >= 5


def test_the_demo_pictures_say_their_licence(home):
    from clipft_tasks.data.readers import open_source
    from clipft_tasks.spec import DataSpec

    source = open_source("elpv:mono", DataSpec())
    assert "CC-BY-NC-SA" in source.licence and next(source.rows()).label
    with pytest.raises(ClipftError, match="cell type"):
        open_source("elpv:quantum", DataSpec())


# Bad rows -------------------------------------------------------------------------------------------------------------


def rubbish(folder: Path) -> dict[str, tuple[dict, str]]:
    """One row of each bad kind by picture name, and a word of the reason it must be given."""
    whole = io.BytesIO()
    made_picture("red", 500, 64).save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.png").write_text("this is not a picture\n" * 20)
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
    made_picture("red", 501).save(outside)
    (folder / "link.png").symlink_to(outside)
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    for name, number in (("mute", 502), ("talkative", 503), ("elsewhere", 504)):
        made_picture("red", number).save(folder / f"{name}.png")
    plain = {"caption": "a photo of a red square.", "label": "red square", "group": "", "split": ""}
    return {
        "missing.png": (plain, "no such file"),
        "cut.jpg": (plain, "cut short"),
        "text.png": (plain, "not a picture"),
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
def test_each_bad_row_is_listed_with_its_reason_and_the_good_ones_go_on(home, pictures, good, kind):
    bad = rubbish(pictures.parent)
    rows = [{**r, "split": ""} for r in good]
    for at, (name, (fields, _)) in enumerate(bad.items()):
        rows.insert(2 * at, {"image": name, **fields})
    path = pictures.with_name(f"bad.{kind}")
    if kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        jsonl(path, rows)
    result = ingest.run(spec_of(path))
    assert sorted(taken(result)["name"]) == sorted(r["image"] for r in good)
    listed = rejected(result)
    assert set(listed) == set(bad) and result["rejected"] == len(bad)
    for at, (name, (_, word)) in enumerate(bad.items()):
        assert word in listed[name]["reason"].lower(), listed[name]
        assert listed[name]["where"] == f"bad.{kind} row {2 * at + 1}"


def test_an_exact_duplicate_is_listed_with_the_row_that_it_repeats(home, pictures, good):
    shutil.copy(pictures.parent / good[3]["image"], pictures.parent / "copy.png")
    path = jsonl(pictures.with_name("twice.jsonl"), [*good, good[0], {**good[3], "image": "copy.png"}])
    result = ingest.run(spec_of(path))
    assert result["rows"] == len(good) and len(taken(result)) == len(good)
    reasons = [r["reason"] for r in rejected(result).values()]
    assert any(f"duplicate of {good[0]['image']}" in r for r in reasons)
    assert any(f"duplicate of {good[3]['image']}" in r for r in reasons)


def test_one_picture_with_two_captions_is_two_rows_of_one_split(home, pictures, good):
    more = [{**r, "caption": f"another word for {r['label']}"} for r in good]
    frame = taken(ingest.run(spec_of(jsonl(pictures.with_name("two.jsonl"), good + more))))
    assert len(frame) == 2 * len(good) and frame["name"].is_unique
    assert (frame.groupby("sha256")["split"].nunique() == 1).all()


def test_a_link_that_leads_in_a_circle_is_one_bad_row(home, pictures, good):
    (pictures.parent / "circle.png").symlink_to("circle.png")
    result = ingest.run(spec_of(jsonl(pictures.with_name("c.jsonl"), [*good, {**good[0], "image": "circle.png"}])))
    assert result["rows"] == len(good) and list(rejected(result)) == ["circle.png"]


def test_a_name_with_a_null_byte_is_one_bad_row(home, pictures, good):
    result = ingest.run(spec_of(jsonl(pictures.with_name("n.jsonl"), [*good, {**good[0], "image": "a\0b.png"}])))
    assert result["rows"] == len(good) and list(rejected(result)) == ["a\0b.png"]


def test_half_a_character_in_a_caption_is_no_reason_to_stop(home, pictures, good):
    rows = [{**good[0], "caption": "a red \ud83d square"}, *good[1:]]
    result = ingest.run(spec_of(jsonl(pictures.with_name("s.jsonl"), rows)))
    assert result["rows"] + result["rejected"] == len(good) and result["rows"] >= len(good) - 1


def test_a_file_name_that_is_not_utf_8_is_no_reason_to_stop(home, tmp_path):
    (tmp_path / "tree" / "red").mkdir(parents=True)
    for number in range(6):
        made_picture("red", number).save(tmp_path / "tree" / "red" / f"{number}.png")
    (tmp_path / "tree" / "red" / "5.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/tree/red/caf\xe9.png"))
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert result["rows"] + result["rejected"] == 6 and result["rows"] >= 5


def test_pictures_that_resemble_those_of_two_splits_are_turned_away(home, pictures, good):
    image = made_picture("red", 0, 64)
    image.save(pictures.parent / "one.png")
    image.resize((80, 80)).save(pictures.parent / "two.png")
    image.resize((72, 72)).save(pictures.parent / "three.png")
    row = {**good[0], "split": ""}
    rows = [
        *({**r, "split": ""} for r in good[1:]),
        {**row, "image": "one.png", "split": "train"},
        {**row, "image": "two.png", "split": "test"},
        {**row, "image": "three.png"},
    ]
    result = ingest.run(spec_of(jsonl(pictures.with_name("near.jsonl"), rows)))
    assert "two different splits" in rejected(result)["three.png"]["reason"]
    assert taken(result).set_index("name").loc[["one.png", "two.png"], "split"].tolist() == ["train", "test"]


# Nothing to ingest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "file,caption\nx.png,y\n", "no column 'image'"),
        ("a.csv", "image,group\nx.png,y\n", "neither captions .* nor labels"),
        ("a.csv", "image,caption\n", "not one row"),
        ("a.csv", "image,caption\nx.png,y\nz.png,y\n", "not one row could be taken .*a.csv row 1: no such file"),
        ("a.csv", "", "cannot be read"),
        ("a.csv", b"image,caption\n\xff\xfe\x00.png,y\n", "cannot be read"),
        ("a.jsonl", '{"image": "x.png", "caption"\n', "cannot be read"),
        ("a.parquet", "PAR1 but no more", "cannot be read"),
        ("a.xlsx", "what?", "neither an existing folder nor a table"),
    ],
)
def test_a_source_that_gives_nothing_says_why(home, tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ClipftError, match=said):
        ingest.run(spec_of(path))


@pytest.mark.parametrize("source", ["", "gone.csv", "gone", "s3://bucket/pictures.csv", "https://example.org/a.csv"])
def test_a_missing_source_is_named(home, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipftError, match=source or "nothing was given"):
        ingest.run(spec_of(source))


def test_an_empty_folder_is_named(home, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "notes.txt").write_text("later")
    with pytest.raises(ClipftError, match="no pictures"):
        ingest.run(spec_of(tmp_path / "tree"))


def test_an_unknown_domain_is_refused():
    with pytest.raises(ClipftError, match="culinary"):
        spec_of("a.csv", domain="culinary")


def test_when_all_rows_are_bad_each_reason_is_still_to_be_found(home, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"image": f"{i}.png", "caption": "x"} for i in range(8)])
    with pytest.raises(ClipftError, match="not one row"):
        ingest.run(spec_of(path))
    (listed,) = home.rglob("rejected.jsonl")
    assert len(listed.read_text().splitlines()) == 8


# No space left --------------------------------------------------------------------------------------------------------


def whole_shards_only(home: Path) -> None:
    for path in home.rglob("*.tar"):
        shards.check(path, path.name)


def test_a_full_disk_is_said_plainly_and_leaves_no_half_shard(home, pictures, monkeypatch):
    real = os.replace

    def full(source, target):
        if str(target).endswith(".tar"):
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        return real(source, target)

    monkeypatch.setattr(shards.os, "replace", full)
    with pytest.raises(ClipftError, match="(?i)space"):
        ingest.run(spec_of(pictures))
    whole_shards_only(home)
    monkeypatch.undo()


def test_a_file_system_that_fills_up_in_the_middle_leaves_no_half_shard(home, tmp_path):
    """The real thing, in a process whose files may not grow beyond 200 kB: a shard of 600 kB breaks off in the middle."""
    table = write_pictures(tmp_path / "large", 2)
    for path in table.parent.glob("*.png"):
        label, number = path.stem.split("-")
        made_picture(label, int(number), 400).save(path.with_suffix(".bmp"), "BMP")
    table.write_text(table.read_text().replace(".png", ".bmp"))
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from clipft_tasks.spec import RunSpec
from clipft_tasks.errors import ClipftError
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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "CLIPFT_HOME": str(home)}
    )
    whole_shards_only(home)
    assert not list((home / "staging").rglob("manifest.parquet"))
    assert done.returncode == 0 and "said:" in done.stdout, done.stderr.splitlines()[-1]

"""Every kind of source becomes the same rows, shards and splits."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import COLORS, made_image, write_images
from fixtures.errors import refuses

from clipft_tasks.data import shards
from clipft_tasks.stages import ingest
from data.conftest import PER_CLASS, jsonl, same_rows, spec_of, taken


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "CSV", "JSONL", "Parquet"])
def test_every_kind_of_table_gives_the_same_rows(as_csv, images, kind):
    frame = pd.read_csv(images, dtype=str, keep_default_na=False)
    path = images.with_name(f"other.{kind}")
    match kind.lower():
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(path)
        case "csv":
            frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(taken(ingest.run(spec_of(path))), as_csv)


def test_a_folder_with_texts_beside_the_images_gives_the_same_rows(as_csv, images, tmp_path):
    for row in as_csv.itertuples():
        folder = tmp_path / "tree" / row.label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.parent / row.name, folder / row.name)
        (folder / row.name).with_suffix(".txt").write_text(row.caption + "\n")
    found = taken(ingest.run(spec_of(tmp_path / "tree")))
    pd.testing.assert_frame_equal(same_rows(found), same_rows(as_csv))


def test_a_folder_without_texts_takes_its_captions_from_the_labels(home, tmp_path):
    for label in COLORS:
        (tmp_path / "tree" / label).mkdir(parents=True)
        for number in range(4):
            made_image(label, number).save(tmp_path / "tree" / label / f"{number}.png")
    assert set(taken(ingest.run(spec_of(tmp_path / "tree")))["caption"]) == {"a photo of a red.", "a photo of a blue."}
    worded = taken(ingest.run(spec_of(tmp_path / "tree", **{"data.caption_template": "one {} thing"})))
    assert set(worded["caption"]) == {"one red thing", "one blue thing"}


def test_subfolders_called_train_val_and_test_are_the_split(home, tmp_path):
    numbers = {"train": range(0, 6), "Val": range(6, 9), "test": range(9, 12)}
    for split, members in numbers.items():
        for label in COLORS:
            (tmp_path / "tree" / split / label).mkdir(parents=True)
            for number in members:
                made_image(label, number).save(tmp_path / "tree" / split / label / f"{number}.png")
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert result.counts == {"train": 12, "val": 6, "test": 6}
    frame = taken(result)
    assert set(frame["label"]) == set(COLORS)
    assert [n.split("/")[0].lower() for n in frame["name"]] == frame["split"].tolist()


def test_a_caption_linked_from_outside_the_folder_is_not_read(home, tmp_path):
    (tmp_path / "tree" / "red").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("the password is swordfish")
    for number in range(4):
        made_image("red", number).save(tmp_path / "tree" / "red" / f"{number}.png")
    (tmp_path / "tree" / "red" / "0.txt").symlink_to(tmp_path / "secret.txt")
    result = ingest.run(spec_of(tmp_path / "tree"))
    assert "swordfish" not in taken(result)["caption"].str.cat()


def test_other_column_names_are_named_in_the_spec(as_csv, images):
    frame = pd.read_csv(images, dtype=str).rename(columns={"image": "file", "caption": "text", "label": "class"})
    frame.to_csv(images.with_name("own.csv"), index=False)
    columns = {"data.image_column": "file", "data.caption_column": "text", "data.label_column": "class"}
    found = taken(ingest.run(spec_of(images.with_name("own.csv"), **columns)))
    pd.testing.assert_frame_equal(found, as_csv)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "nullable parquet"])
def test_numbers_as_classes_read_the_same_from_every_kind_of_table(home, images, good, kind):
    rows = [{**r, "label": i % 2 if i else None} for i, r in enumerate(good)]
    frame = pd.DataFrame(rows)
    path = images.with_name("numbers." + kind.split()[-1])
    if kind == "jsonl":
        jsonl(path, rows)
    else:
        (frame.convert_dtypes() if "nullable" in kind else frame).to_parquet(path)
    assert set(taken(ingest.run(spec_of(path)))["label"]) == {"", "0", "1"}


def test_missing_texts_in_a_nullable_parquet_are_empty_texts(home, images, good):
    frame = pd.DataFrame(good).convert_dtypes()
    frame["caption"] = frame["caption"].astype("string")
    frame.loc[0, ["caption", "group"]] = pd.NA
    frame.to_parquet(images.with_name("n.parquet"))
    result = ingest.run(spec_of(images.with_name("n.parquet")))
    assert result.rows == 2 * PER_CLASS and set(taken(result)["caption"]) == {
        "a photo of a red square.",
        "a photo of a blue square.",
    }


def test_rows_of_one_group_stay_in_one_split(home, tmp_path):
    frame = taken(ingest.run(spec_of(write_images(tmp_path / "grouped", 40, groups=True))))
    assert (frame.groupby("group")["split"].nunique() == 1).all() and frame["split"].nunique() == 3


def test_every_image_can_be_read_back_from_its_shard(home, images):
    result = ingest.run(spec_of(images))
    for row in taken(result).itertuples():
        data = shards.read(Path(result.staging, "shards"), shards.Place(row.shard, row.offset, row.length))
        assert data == (images.parent / row.name).read_bytes()


def test_the_same_source_again_gives_the_same_bytes(home, images):
    def content(result: dict) -> dict[str, bytes]:
        return {str(p.relative_to(result.staging)): p.read_bytes() for p in Path(result.staging).rglob("*") if p.is_file()}

    one = content(ingest.run(spec_of(images)))
    assert one == content(ingest.run(spec_of(images))) and len(one) >= 5


def test_the_demo_images_say_their_license(home):
    from clipft_tasks.data.readers import open_source
    from clipft_tasks.spec import DataSpec

    source = open_source("elpv:mono", DataSpec())
    assert "CC-BY-NC-SA" in source.license and next(source.rows()).label
    with refuses("source.invalid_argument", "elpv:quantum", "elpv:mono"):
        open_source("elpv:quantum", DataSpec())


# Bad rows -------------------------------------------------------------------------------------------------------------


# WebDataset shards ----------------------------------------------------------------------------------------------------


def write_shard(path: Path, rows: pd.DataFrame, images: Path, texts: str = "json") -> Path:
    """As the webdataset library writes one."""
    import webdataset

    with webdataset.TarWriter(str(path)) as out:
        for row in rows.itertuples():
            said = (
                {"json": {"caption": row.caption, "label": row.label}}
                if texts == "json"
                else {"txt": row.caption, "cls": row.label}
            )
            said = {k: v if isinstance(v, dict) else v.encode() for k, v in said.items()}
            out.write({"__key__": f"data/{Path(row.name).stem}", "png": (images.parent / row.name).read_bytes(), **said})
    return path


@pytest.mark.parametrize("texts", ["json", "txt and cls"])
def test_webdataset_shards_give_the_same_rows(as_csv, images, tmp_path, texts):
    (tmp_path / "tars").mkdir()
    for number, part in enumerate((as_csv.iloc[:9], as_csv.iloc[9:])):
        write_shard(tmp_path / "tars" / f"{number:03d}.tar", part, images, texts)
    found = taken(ingest.run(spec_of(f"webdataset:{tmp_path / 'tars'}")))
    pd.testing.assert_frame_equal(same_rows(found), same_rows(as_csv))


def test_our_own_shards_hold_images_only(as_csv, images, home):
    result = ingest.run(spec_of(images))
    shutil.copytree(Path(result.staging, "shards"), home / "copied")
    with refuses("source.no_usable_rows", "neither a caption nor a label"):
        ingest.run(spec_of(f"webdataset:{home / 'copied'}"))


def test_a_shard_that_is_cut_short_gives_its_whole_rows_and_says_so(as_csv, images, tmp_path):
    shard = write_shard(tmp_path / "cut.tar", as_csv, images)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    result = ingest.run(spec_of(shard))
    assert 8 <= result.rows < len(as_csv) and result.rejected >= 1
    reasons = (Path(result.staging) / "rejected.jsonl").read_text()
    assert "cut short" in reasons


def test_what_is_no_shard_is_named(home, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar file at all" * 100)
    with refuses("source.unreadable_file", tmp_path / "x.tar"):
        ingest.run(spec_of(tmp_path / "x.tar"))
    (tmp_path / "empty").mkdir()
    with refuses("source.no_images", tmp_path / "empty"):
        ingest.run(spec_of(f"webdataset:{tmp_path / 'empty'}"))

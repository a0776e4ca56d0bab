"""What people have: trees of folders, tables of many makes, lists of captions. Each is read as it is meant, or refused by reason."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import made_image
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.data.images import BadImageError
from clipft_tasks.data.readers import Row, Source, open_source
from clipft_tasks.data.readers.text import split_of
from clipft_tasks.spec import DataSpec
from clipft_tasks.stages import ingest
from data.conftest import jsonl, rejected, spec_of, taken


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


def put(path: Path, number: int = 0, caption: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made_image("red", number).save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption)
    return path


def png(number: int = 0) -> bytes:
    out = io.BytesIO()
    made_image("red", number).save(out, "PNG")
    return out.getvalue()


def read(source: object, **options: object) -> tuple[list[Row], Source]:
    opened = open_source(str(source), DataSpec(**options))
    return list(opened.rows()), opened


def reason(row: Row) -> str:
    with pytest.raises(BadImageError) as caught:
        row.image_bytes()
    return str(caught.value)


def meant(rows: list[Row]) -> dict[str, tuple[str, str, str]]:
    return {row.key: (row.split, row.label, row.group) for row in rows}


# Trees of folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train2017", "train"), ("training_set", "train"), ("val", "val"),
        ("valid", "val"), ("validation", "val"), ("dev", "val"), ("eval", "val"), ("test", "test"), ("testing", "test"),
        ("Test-images", "test"), ("holdout", "holdout"), ("trained", "trained"), ("devil", "devil"), ("", ""),
    ],
)  # fmt: skip
def test_words_that_name_a_split(word, split):
    assert split_of(word) == split


TREES = {
    "Hugging Face": (["train/a/{}", "validation/a/{}", "test/b/{}"], {"train/a": ("train", "a", ""), "validation/a": ("val", "a", ""), "test/b": ("test", "b", "")}),
    "Roboflow": (["train/a/{}", "valid/b/{}", "test/b/{}"], {"valid/b": ("val", "b", "")}),
    "split on the second level": (["images/train/cat/{}", "images/test/dog/{}"], {"images/train/cat": ("train", "cat", ""), "images/test/dog": ("test", "dog", "")}),
    "split below the class": (["cat/train/{}", "cat/test/{}", "dog/train/{}"], {"cat/test": ("test", "cat", ""), "dog/train": ("train", "dog", "")}),
    "a class called train": (["train/{}", "car/{}", "bus/{}"], {"train": ("", "train", ""), "car": ("", "car", "")}),
    "patients below classes": (["benign/P001/{}", "benign/P002/{}", "malign/P003/{}"], {"benign/P001": ("", "benign", "P001"), "malign/P003": ("", "malign", "P003")}),
    "names below classes": (["benign/smith/{}", "malign/jones/{}"], {"benign/smith": ("", "benign", "smith")}),
    "patients and studies below classes": (["a/p1/s1/{}", "a/p1/s2/{}", "b/p2/s1/{}"], {"a/p1/s2": ("", "a", "p1")}),
    "classes below patients": (["patient1/ok/{}", "patient1/bad/{}", "patient2/ok/{}"], {"patient1/bad": ("", "bad", "patient1")}),
    "split, class and patient": (["train/a/p1/{}", "val/a/p2/{}", "test/b/p3/{}"], {"val/a/p2": ("val", "a", "p2")}),
    "one folder that only holds images": (["images/a/{}", "images/b/{}"], {"images/a": ("", "a", "")}),
    "digits": (["0/{}", "1/{}", "2/{}"], {"1": ("", "1", "")}),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_levels_of_folders_are_what_they_plainly_are(tmp_path, name):
    folders, wanted = TREES[name]
    for number, folder in enumerate(folders):
        for image in range(2):
            put(tmp_path / folder.format(f"{image}.png"), 10 * number + image)
    rows, source = read(tmp_path)
    found = meant(rows)
    assert {folder: found[f"{folder}/0.png"] for folder in wanted} == wanted
    assert source.account.seen == len(rows) and source.account.understood[0].startswith("Folders: level 1")


def test_classes_within_classes_stay_classes_where_each_has_many_images_and_that_is_said(tmp_path):
    for folder in ("animals/dog", "animals/cat", "things/car"):
        for image in range(10):
            put(tmp_path / folder / f"{image}.png", image)
    rows, source = read(tmp_path)
    assert {row.label for row in rows} == {"animals/dog", "animals/cat", "things/car"} and not any(r.group for r in rows)
    assert "data.levels" in source.account.warnings[0]


@pytest.mark.parametrize(
    ("levels", "wanted"),
    [
        ("class/group", ("", "x", "y")),
        ("group/class", ("", "y", "x")),
        ("class/class", ("", "x/y", "")),
        ("-/class", ("", "y", "")),
        ("-", ("", "", "")),
        ("class/group/group/class", ("", "x", "y")),
    ],
)
def test_levels_of_folders_are_what_is_asked_for(tmp_path, levels, wanted):
    put(tmp_path / "x" / "y" / "0.png", 0, "a caption")
    assert meant(read(tmp_path, levels=levels)[0]) == {"x/y/0.png": wanted}


def test_a_split_level_that_is_asked_for_refuses_other_words(home, tmp_path):
    for number, folder in enumerate(("train", "Valid", "holdout")):
        for image in range(4):
            put(tmp_path / folder / "a" / f"{image}.png", 10 * number + image)
    result = ingest.run(spec_of(tmp_path, **{"data.levels": "split/class"}))
    assert (result.counts["train"], result.counts["val"], result.rejected) == (4, 4, 4)
    assert "holdout" in rejected(result)["holdout/a/0.png"]["reason"]


@pytest.mark.parametrize("folders", [("00000", "00001"), ("images",), ("Images",)], ids=["img2dataset", "images", "flickr8k"])
def test_folders_that_only_hold_captioned_images_are_no_classes(tmp_path, folders):
    for folder in folders:
        for image in range(3):
            put(tmp_path / folder / f"{image:09d}.jpg", image, f"caption {image}").with_suffix(".json").write_text("{}")
    rows, source = read(tmp_path)
    assert {row.label for row in rows} == {""} and all(row.caption for row in rows)
    assert source.account.passed_over[".json files beside images"] == 3 * len(folders)


def test_what_systems_leave_and_what_is_no_row_is_counted_by_kind(tmp_path):
    for number in range(4):
        put(tmp_path / "cat" / f"{number}.png", number)
        (tmp_path / "cat" / f"._{number}.png").write_bytes(b"\0\5\x16\7\0\2\0\0" + bytes(80))
    (tmp_path / "cat" / ".ipynb_checkpoints").mkdir()
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (tmp_path / "__MACOSX" / "cat").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "cat" / "0.png").write_bytes(b"x")
    for name in (".DS_Store", "Thumbs.db", "scan.svs", "scan2.svs", "notes.md", "0.json", "DOE_JOHN.19700102"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    put(tmp_path.parent / "elsewhere" / "9.png", 9)
    (tmp_path / "dog").symlink_to(tmp_path.parent / "elsewhere")
    rows, source = read(tmp_path)
    account = source.account
    assert len(rows) == 4 and {row.label for row in rows} == {"cat"}
    assert account.passed_over == {
        "files of macOS (._*, __MACOSX)": 4, "hidden folders": 1, "__MACOSX folders": 1, "hidden files": 1, "system files": 1,
        "linked folders": 1, ".svs files": 2, ".md files": 1, ".json files beside images": 1, "files without a known ending": 1,
    }  # fmt: skip
    said = " ".join(account.warnings)
    assert "1 folders are links" in said and "2 .svs files were passed over" in said and "DOE" not in str(account)


@pytest.mark.parametrize("ending", ["HEIC", "heif", "avif", "jfif", "JPG"])
def test_images_of_newer_endings_are_rows(tmp_path, ending):
    (tmp_path / "a").mkdir()
    kind = {"heic": "HEIF", "heif": "HEIF", "avif": "AVIF"}.get(ending.lower(), "JPEG")
    made_image("red", 1).save(tmp_path / "a" / f"x.{ending}", kind)
    rows, _ = read(tmp_path)
    assert len(rows) == 1 and rows[0].image_bytes()


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        ("café noir".encode("utf-8-sig"), "café noir"),
        ("café noir".encode("utf-16"), "café noir"),
        ("café noir".encode("utf-32"), "café noir"),
        ("café noir\n".encode(), "café noir"),
        ("café noir".encode("cp1252"), None),
        ("café noir".encode("utf-16-le"), None),
    ],
    ids=["UTF-8 with mark", "UTF-16", "UTF-32", "UTF-8", "cp1252", "UTF-16 without mark"],
)
def test_a_text_is_decoded_by_its_mark_or_refused(tmp_path, data, caption):
    put(tmp_path / "folder" / "a.png").with_suffix(".txt").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "folder" / "a.png", "a.png")
        tar.add(tmp_path / "folder" / "a.txt", "a.txt")
    for source in (tmp_path / "folder", tmp_path / "x.tar"):
        (row,), _ = read(source)
        if caption:
            assert row.caption == caption and row.image_bytes()
        else:
            assert "save it as UTF-8" in reason(row).replace("Save", "save")


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        put(tmp_path / f"{number}.png", number)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "separator", "options"),
    [("t.csv", ",", {}), ("t.csv", ";", {}), ("t.csv", "\t", {}), ("t.tsv", "\t", {}), ("t.csv", "|", {}), ("t.csv", "^", {"separator": "^"})],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_table_is_read_whatever_separates_its_columns(folder, name, separator, options, encoding):
    lines = [separator.join(("image", "caption", "label")), *(separator.join((f"{i}.png", f"ä {i}", "x")) for i in range(6))]
    (folder / name).write_bytes("\r\n".join(lines).encode(encoding))
    rows, _ = read(folder / name, **options)
    assert [row.caption for row in rows] == [f"ä {i}" for i in range(6)] and {row.label for row in rows} == {"x"}


def test_a_row_with_too_many_fields_is_refused_by_its_line_and_a_comma_at_the_end_is_none(folder):
    (folder / "t.csv").write_text('image,caption\n0.png,a cat, sitting\n1.png,a dog,\n2.png,"one, two"\n')
    bad, good, quoted = read(folder / "t.csv")[0]
    assert "line 2 has 3 fields, the head 2" in reason(bad)
    assert good.caption == "a dog" and quoted.caption == "one, two" and good.image_bytes()


LISTS = [["one", "two"], ["three"], [], None]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "json", "csv"])
def test_a_list_of_captions_is_a_row_each_of_one_image(folder, kind):
    records = [{"image": f"{i}.png", "caption": captions, "label": "x"} for i, captions in enumerate(LISTS)]
    path = folder / f"t.{kind}"
    match kind:
        case "jsonl":
            jsonl(path, records)
        case "json":
            path.write_text(json.dumps(records))
        case "csv":
            pd.DataFrame(records).to_csv(path, index=False)
        case "parquet":
            pd.DataFrame(records).to_parquet(path)
    rows, _ = read(path)
    assert [(row.key, row.caption) for row in rows][:3] == [("0.png", "one"), ("0.png", "two"), ("1.png", "three")]
    assert rows[0].image_bytes() == rows[1].image_bytes()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_list_of_labels_is_refused_with_the_way_out_and_the_others_go_on(folder, kind):
    records = [
        {"image": "0.png", "caption": "c", "label": ["Effusion", "Edema"]},
        {"image": "1.png", "caption": "c", "label": ["Edema"]},
    ]
    path = folder / f"t.{kind}"
    if kind == "jsonl":
        jsonl(path, records)
    elif kind == "csv":
        pd.DataFrame(records).to_csv(path, index=False)
    else:
        pd.DataFrame(records).to_parquet(path)
    bad, good = read(path)[0]
    assert "a row has one class" in reason(bad) and bad.key == "0.png" and good.label == "Edema"


@pytest.mark.parametrize("kind", ["jsonl", "nullable parquet", "parquet of floats"])
def test_numbers_of_seventeen_digits_stay_what_they_are_or_are_refused(folder, kind):
    numbers = [None, *(16_000_000_000_000_001 + 2 * i for i in range(5))]
    records = [{"image": f"{i}.png", "caption": "c", "group": number} for i, number in enumerate(numbers)]
    path = folder / f"t.{kind.split()[0] if kind == 'jsonl' else 'parquet'}"
    if kind == "jsonl":
        jsonl(path, records)
    else:
        frame = pd.DataFrame(records)
        frame["group"] = pd.array(numbers, dtype="Int64") if "nullable" in kind else frame["group"].astype(float)
        frame.to_parquet(path)
    rows, _ = read(path)
    if "floats" in kind:
        assert "write it as text" in reason(rows[1]) and rows[0].group == ""
    else:
        assert [row.group for row in rows] == ["", *map(str, numbers[1:])]


@pytest.mark.parametrize("cell", [lambda b: {"bytes": b, "path": "1.jpg"}, lambda b: {"bytes": b, "path": None}, lambda b: b])
def test_parquet_with_images_in_it_is_read(home, tmp_path, cell):
    records = [{"image": cell(png(i)), "label": i % 2} for i in range(8)]
    (tmp_path / "data").mkdir()
    for number, split in enumerate(("train", "validation")):
        pd.DataFrame(records[4 * number :][:4]).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    result = ingest.run(spec_of(tmp_path))
    assert result.rows == 8 and result.counts == {"train": 4, "val": 4, "test": 0}
    assert Path(result.staging, "rejected.jsonl").read_text() == ""


def test_classes_of_a_hugging_face_table_have_their_names(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [png(0), png(1)], "label": [1, 0]}).replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [row.label for row in read(tmp_path / "t.parquet")[0]] == ["dog", "cat"]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_a_table_of_its_images_is_read_by_it(folder, name):
    frame = pd.DataFrame({"file_name": [f"{i}.png" for i in range(6)], "text": [f"caption {i}" for i in range(6)]})
    frame.to_csv(folder / name, index=False) if name.endswith("csv") else frame.to_json(
        folder / name, orient="records", lines=True
    )
    rows, source = read(folder)
    assert [row.caption for row in rows] == [f"caption {i}" for i in range(6)] and all(row.image_bytes() for row in rows)
    assert "images from 'file_name'" in source.account.understood[0]


def test_flickr8k_is_read_by_its_list_of_captions(tmp_path):
    put(tmp_path / "Images" / "1.png")
    (tmp_path / "captions.txt").write_text("image,caption\n1.png,a dog .\n1.png,a brown dog .\n")
    rows, _ = read(tmp_path)
    assert [row.caption for row in rows] == ["a dog .", "a brown dog ."] and rows[1].image_bytes() and not rows[0].label


def test_captions_as_coco_has_them(tmp_path):
    for number in range(3):
        put(tmp_path / "train2017" / f"{number}.png", number)
    images = [{"id": 7 + i, "file_name": f"{i}.png"} for i in range(3)]
    notes = [{"image_id": 7, "caption": "one"}, {"image_id": 8, "caption": "two"}, {"image_id": 7, "caption": "three"}]
    path = tmp_path / "annotations" / "captions_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    rows, _ = read(path)
    assert [(r.key, r.caption, r.split) for r in rows][:3] == [
        ("0.png", "one", "train"),
        ("0.png", "three", "train"),
        ("1.png", "two", "train"),
    ]
    assert all(row.image_bytes() for row in rows)
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 1]}]}))
    with refuses("source.unreadable_file", "no caption"):
        read(path)


def test_paths_may_be_absolute_below_the_table_or_lie_below_another_folder(folder, tmp_path):
    table = folder / "lists" / "t.csv"
    table.parent.mkdir()
    table.write_text(
        f"image,caption\n{folder / '0.png'},c\n1.png,c\nhttps://example.org/a.jpg,c\n/etc/passwd,c\nsub\\2.png,c\n"
    )
    put(folder / "sub" / "2.png", 2)
    one, two, address, outside, windows = read(table, images_root=str(folder))[0]
    assert one.image_bytes() == png(0) and two.image_bytes() == png(1) and windows.image_bytes() == png(2)
    assert "not fetched" in reason(address) and "absolute" in reason(outside)
    assert "absolute" in reason(read(table)[0][0])


def test_other_cells_that_are_no_text_are_refused_one_by_one(folder):
    odd = [{"a": 1}, [1, [2]], 7, True, 2.5]
    rows, _ = read(jsonl(folder / "t.jsonl", [{"image": "0.png", "caption": each} for each in odd]))
    assert [row.caption for row in rows][-3:] == ["7", "True", "2.5"] and "no text" in reason(rows[0])


# WebDataset -----------------------------------------------------------------------------------------------------------


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def test_members_of_one_name_need_not_lie_together_and_those_of_macos_are_passed_over(tmp_path):
    members = [(f"{i}.png", png(i)) for i in range(4)] + [(f"._{i}.png", b"x") for i in range(4)]
    rows, source = read(tar(tmp_path / "x.tar", members + [(f"{i}.txt", b"caption") for i in range(4)]))
    assert [row.caption for row in rows] == ["caption"] * 4 and rows[3].image_bytes() == png(3)
    assert source.account.passed_over == {"files of macOS (._*, __MACOSX)": 4} and source.account.seen == 12


def test_names_with_periods_are_understood_where_they_can_be_and_else_said(tmp_path):
    rows, _ = read(tar(tmp_path / "x.tar", [("Part 2.0 (new).jpg", png()), ("Part 2.0 (new).txt", b"c"), ("v1.2.png", png())]))
    assert rows[0].caption == "c" and rows[0].image_bytes() and "period" in reason(rows[1])


def test_the_split_is_in_the_name_of_the_shard_or_its_folder(tmp_path):
    for name in ("train-000000.tar", "validation-000000.tar", "test/000.tar", "000.tar"):
        tar(tmp_path / name, [(f"{name[:3]}.png", png()), (f"{name[:3]}.txt", b"c")])
    rows, _ = read(f"webdataset:{tmp_path}")
    assert sorted(row.split for row in rows) == ["", "test", "train", "val"]


def test_a_list_of_captions_in_a_shard_is_a_row_each(tmp_path):
    told = json.dumps({"caption": ["one", "two"], "label": ["a"], "split": "Validation"}).encode()
    rows, _ = read(tar(tmp_path / "x.tar", [("0.png", png()), ("0.json", told)]))
    assert [(row.caption, row.label, row.split) for row in rows] == [("one", "a", "val"), ("two", "a", "val")]


def test_all_of_it_becomes_rows_of_a_data_set(home, folder):
    records = [{"image": f"{i}.png", "caption": [f"{i} one", f"{i} two"], "label": "x" if i else ["x", "y"]} for i in range(6)]
    result = ingest.run(spec_of(jsonl(folder / "t.jsonl", records)))
    assert (result.rows, result.rejected) == (10, 1) and taken(result)["name"].is_unique
    assert np.array_equal(taken(result).groupby("sha256")["split"].nunique(), [1] * 5)


# Stacks and arrays ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "pages"), [("auto", [0]), ("first", [0]), ("middle", [2]), ("all", [0, 1, 2, 3])])
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_pages_of_a_stack_are_chosen_and_the_others_counted(tmp_path, how, pages, kind):
    import tifffile

    (tmp_path / "a").mkdir()
    stack = np.stack([np.full((32, 40), 1000 * i, np.uint16) for i in range(4)])
    tifffile.imwrite(tmp_path / "a" / "x.ome.tiff", stack, ome=True, metadata={"axes": "ZYX"})
    (tmp_path / "t.csv").write_text("image,caption\na/x.ome.tiff,c\n")
    rows, source = read(tmp_path if kind == "folder" else tmp_path / "t.csv", frames=how)
    found = [int(np.asarray(Image.open(io.BytesIO(row.image_bytes()))).max()) for row in rows]
    assert found == [1000 * page for page in pages] and len({row.group for row in rows}) == 1
    assert source.account.passed_over["pages and slices of files with several"] == 4 - len(pages)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_slices_of_a_volume_are_rows(tmp_path, name):
    import nibabel

    volume = np.zeros((20, 30, 5), np.int16)
    volume[15:, :, :] = np.arange(1, 6) * 100  # the patient's left, brighter from feet to head
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / name)
    (tmp_path / "x.txt").write_text("a head")
    (middle,), source = read(tmp_path)
    values = np.asarray(Image.open(io.BytesIO(middle.image_bytes())))
    assert values.shape == (30, 20) and values.max() == round(65535 * 300 / 500) and middle.caption == "a head"
    assert source.account.passed_over["pages and slices of files with several"] == 4
    rows, _ = read(tmp_path, frames="all")
    assert len(rows) == 5 and len({row.group for row in rows}) == 1 and len({row.image_bytes() for row in rows}) == 5
    (tmp_path / name).write_bytes(b"no volume")
    assert "cannot be read" in reason(read(tmp_path)[0][0])


def test_arrays_as_medmnist_has_them(home, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 20), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count).reshape(-1, 1) % 2
    np.savez(tmp_path / "x.npz", **arrays)
    result = ingest.run(spec_of(tmp_path / "x.npz"))
    assert result.counts == {"train": 20, "val": 4, "test": 4} and set(taken(result)["label"]) == {"0", "1"}
    np.savez(tmp_path / "y.npz", x=np.zeros(3))
    with refuses("source.unreadable_file", "train_images"):
        read(tmp_path / "y.npz")

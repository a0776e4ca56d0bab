"""Tables as Excel, labeling tools and other machines leave them: read as they are meant, or said."""

import json
import unicodedata
from pathlib import Path

import pytest
from fixtures.errors import refuses

from clipft_tasks.data.images import BadImageError
from clipft_tasks.data.readers import open_source
from clipft_tasks.data.readers.text import captions_of, cell
from clipft_tasks.spec import DataSpec
from clipft_tasks.stages import ingest
from data.conftest import rejected, spec_of, taken
from data.test_identity import photo

COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(COUNT):
        photo(number).save(tmp_path / f"{number:03}.png")
    return tmp_path


def csv(folder: Path, head: str, row, encoding: str = "utf-8", name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes("".join(f"{line}\r\n" for line in (head, *map(row, range(COUNT)))).encode(encoding))
    return path


def warnings(result) -> str:
    return " ".join(json.loads((Path(result.staging) / "datacard.json").read_text())["account"]["warnings"])


@pytest.mark.parametrize(
    ("before", "sep", "said"),
    [
        ("sep=;\r\n", ";", ""),
        ("Prüfbericht Linie 4;;\r\n;;\r\n", ";", "before the head"),
        ("Export of 2024\r\n\r\n", ",", "before the head"),
    ],
)
def test_what_a_report_has_before_its_table_is_no_row(home, folder, before, sep, said):
    made = ingest.run(spec_of(csv(folder, f"{before}Image{sep}Label{sep}", lambda n: f"{n:03}.png{sep}{'ab'[n % 2]}{sep}")))
    assert made.rows == COUNT and set(taken(made)["label"]) == {"a", "b"}
    assert said in warnings(made)


def test_columns_are_found_in_any_case(home, folder):
    rows = csv(folder, "IMAGE,Label,Group,Split", lambda n: f"{n:03}.png,{'ab'[n % 2]},p{n},{('train', 'test', 'val')[n % 3]}")
    frame = taken(ingest.run(spec_of(rows)))
    assert set(frame["split"]) == {"train", "val", "test"} and frame["group"].nunique() == COUNT


@pytest.mark.parametrize(
    ("value", "what", "meant"),
    [
        ('="0012"', "group", "0012"),
        ("#N/A", "label", "cells that hold an error"),
        ("#BEZUG!", "group", "cells that hold an error"),
        ("1,23457E+11", "group", "numbers that lost digits"),
        ("1.2E+05", "label", "numbers that lost digits"),
        ("Mu\u0308ller", "group", "Müller"),
        ('{"choices": ["crack", "ok"]}', "label", "label that is no text"),
        ('["crack", "ok"]', "label", "several labels"),
        ("['a cat' 'two cats']", "caption", "lists that cannot be read"),
        ("[left] lung", "caption", "[left] lung"),
        ("(a) lung (b)", "caption", "(a) lung (b)"),
        ('("quoted") words', "caption", '("quoted") words'),
    ],
)
def test_a_cell_is_what_was_meant_or_is_refused(value, what, meant):
    try:
        assert cell(value, what) == meant
    except BadImageError as error:
        assert error.kind == meant


@pytest.mark.parametrize("written", ['["a cat", null, "two"]', "['a cat', 'two']", "('a cat', 'two')", '["a cat", "two"]'])
def test_captions_that_a_program_wrote_as_text_are_captions(written):
    assert captions_of(written) == ["a cat", "two"]


def test_groups_that_are_missing_are_no_group(home, folder):
    made = ingest.run(
        spec_of(csv(folder, "image,label,group", lambda n: f"{n:03}.png,{'ab'[n % 2]},{('NULL', 'nan', 'n/a')[n % 3]}"))
    )
    assert set(taken(made)["group"]) == {""} and "missing value" in warnings(made)


@pytest.mark.parametrize(
    ("caption", "label", "said"),
    [
        ("Riß", "Ri\ufffd {}", "were decoded wrongly"),
        ("x", "RiÃŸ im GehÃ¤use {}", "taken for another encoding"),
        ("x", "a cat &amp; a dog {}", "hold HTML"),
    ],
)
def test_captions_that_were_damaged_before_are_worth_a_look(home, folder, caption, label, said):
    made = ingest.run(spec_of(csv(folder, "image,caption", lambda n: f"{n:03}.png,{label.format(n)}")))
    assert f"{COUNT} captions" in warnings(made) and said in warnings(made)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["0", "1", "2"], "All 3 classes are numbers"),
        (["crack|dent", "ok", "crack"], "1 of 3 classes read like several"),
        (["crack; dent", "ok", "dent"], "1 of 3 classes read like several"),
        (["dent, large", "ok", "crack, small"], ""),
        (["Riß", "Größe", "ÄÖ"], ""),
    ],
)
def test_classes_that_are_numbers_or_several_in_one_are_worth_a_look(home, folder, labels, said):
    made = ingest.run(spec_of(csv(folder, "image,label", lambda n: f'{n:03}.png,"{labels[n % 3]}"')))
    assert said in warnings(made) and bool(said) == ("classes" in warnings(made))


def test_names_that_a_mac_composes_otherwise_are_found(home, tmp_path):
    names = [unicodedata.normalize("NFD", f"Prüfling {n}") for n in range(COUNT)]
    (tmp_path / unicodedata.normalize("NFD", "Größe")).mkdir()
    for number, name in enumerate(names):
        photo(number).save(tmp_path / unicodedata.normalize("NFD", "Größe") / f"{name}.png")
        (tmp_path / unicodedata.normalize("NFD", "Größe") / unicodedata.normalize("NFC", f"{name}.TXT")).write_text(
            f"text {number}"
        )
    frame = taken(ingest.run(spec_of(tmp_path)))
    assert sorted(frame["caption"]) == sorted(f"text {n}" for n in range(COUNT))
    assert set(frame["label"]) == {unicodedata.normalize("NFC", "Größe")}
    table = csv(tmp_path, "image,caption", lambda n: unicodedata.normalize("NFC", f"Größe/{names[n]}.png,row {n}"))
    assert len(taken(ingest.run(spec_of(table)))) == COUNT


@pytest.mark.parametrize(
    ("path", "reason"),
    [("{:03}.PNG", "(there is 000.png)"), ("{:03}", "(there is 000.png)"), ("C:\\Users\\maier\\{:03}.png", "one of Windows")],
)
def test_a_path_that_is_nearly_right_says_what_is_there(home, folder, path, reason):
    rows = csv(folder, "image,label", lambda n: f"{path.format(n) if n == 0 else f'{n:03}.png'},a")
    (row,) = rejected(ingest.run(spec_of(rows))).values()
    assert reason in row["reason"]


def test_texts_beside_images_that_are_boxes_are_no_captions(home, tmp_path):
    for number in range(4):
        photo(number).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.txt").write_text("a crack" if number == 3 else "0 0.5 0.5 0.2 0.2\n1 0.1 0.2 0.3 0.4\n")
    made = ingest.run(spec_of(tmp_path))
    assert made.rows == 1 and {row["kind"] for row in rejected(made).values()} == {"boxes in place of a caption"}


def test_texts_called_like_the_whole_image_are_captions_and_other_kinds_are_said(home, tmp_path):
    for number in range(4):
        photo(number).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"{number}.jpg.txt").write_text(f"a crack {number}")
        (tmp_path / f"{number}.json").write_text("{}")
    photo(9).save(tmp_path / "IMG_0001", "JPEG")
    made = ingest.run(spec_of(tmp_path))
    assert sorted(taken(made)["caption"]) == [f"a crack {n}" for n in range(4)]
    assert "4 .json files beside images" in warnings(made) and "begin like images" in warnings(made)


@pytest.mark.parametrize(("name", "count"), [("t.ndjson", COUNT), ("t.json", COUNT)])
def test_json_lines_are_read_whatever_they_end_in(home, folder, name, count):
    lines = [json.dumps({"image": f"{n:03}.png", "label": "ab"[n % 2]}) for n in range(COUNT)]
    (folder / name).write_text("\n".join(lines))
    assert ingest.run(spec_of(folder / name)).rows == count


def test_a_file_that_nothing_reads_says_what_to_save_it_as(home, folder):
    (folder / "t.xls").write_bytes(b"\xd0\xcf")
    with refuses("source.unknown", "takes .xls", "CSV"):
        open_source(str(folder / "t.xls"), DataSpec())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_what_lies_in_place_of_an_image_is_named(home, folder, data, said):
    (folder / "000.png").write_bytes(data)
    (row,) = rejected(ingest.run(spec_of(csv(folder, "image,label", lambda n: f"{n:03}.png,a")))).values()
    assert said in row["reason"]

"""What a source holds and how it was understood is said: in the log, on the card, on the report. One row never hides the rest."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import made_image, write_images
from fixtures.errors import refuses

from clipft_tasks.contracts.dataset import LONGEST, DatasetCard
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data.readers import Reader, Row, Source
from clipft_tasks.spec import DataSpec
from clipft_tasks.stages import ingest, validate
from data.conftest import rejected, spec_of, taken


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


def card(result) -> DatasetCard:
    return DatasetCard.model_validate_json(Path(result.staging, "datacard.json").read_text())


class Whims(Reader):
    """A good image, and rows that raise whatever they like."""

    folder = Path()
    ERRORS = (KeyError("MPO"), ValueError("x" * 3_000_000), TypeError(), RecursionError("deep"), AttributeError("no"))

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        def fails(error: Exception) -> bytes:
            raise error

        def rows() -> Iterator[Row]:
            for number, error in enumerate(cls.ERRORS):
                yield Row(f"bad {number}", lambda error=error: fails(error), f"bad {number}", label="red")
            for file in sorted(cls.folder.glob("*.png")):
                yield Row(file.name, file.read_bytes, file.name, label="red")

        return Source(rows)


def test_whatever_one_row_raises_is_its_reason_and_the_others_go_on(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Whims, "folder", write_images(tmp_path / "source", 3).parent)
    result = ingest.run(spec_of(f"{__name__}:Whims"))
    assert (result.rows, result.rejected) == (6, len(Whims.ERRORS))
    listed = rejected(result)
    assert "KeyError" in listed["bad 0"]["reason"] and all(len(row["reason"]) <= LONGEST for row in listed.values())
    account = card(result).account
    assert account.refused == {"cannot be read": len(Whims.ERRORS)} and account.taken == 6
    assert "All rows are of one class" in " ".join(account.warnings)
    assert "Look at this: All rows" in capsys.readouterr().out


@pytest.mark.slow
def test_medical_rows_without_groups_are_a_visible_warning(home, tmp_path, tiny):
    table = write_images(tmp_path / "source", 20)
    for path in table.parent.glob("*.png"):
        label, number = path.stem.split("-")
        made_image(label, int(number), 64).save(path)
    spec = spec_of(
        table, domain="medical", **{"model.start": str(tiny), "data.license": "cc0-1.0", "data.origin": "our clinic"}
    )
    result = ingest.run(spec)
    assert "images of one patient may lie in train and test" in card(result).account.warnings[0]
    page = Path(validate.run(spec, result.staging).report).read_text("utf-8")
    assert "Look at this" in page and "images of one patient" in page and "2 classes, 0 groups in 40 rows." in page
    assert (result.license, card(result).origin) == ("CC0-1.0", "our clinic") and "our clinic" in page


def test_what_a_camera_says_of_places_and_persons_is_not_packed(home, tmp_path):
    from PIL import Image

    (tmp_path / "red").mkdir()
    exif = Image.Exif()
    exif[0x0112], exif[315] = 6, "Dr. Jane Doe"
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 0.0), 29: "1970:01:02"})
    for number in range(4):
        made_image("red", number).crop((0, 0, 48, 40)).save(tmp_path / "red" / f"{number}.jpg", exif=exif)
    result = ingest.run(spec_of(tmp_path))
    packed = b"".join(p.read_bytes() for p in Path(result.staging).rglob("*") if p.is_file())
    assert b"Jane" not in packed and b"1970" not in packed and result.rows == 4
    assert set(taken(result)["width"]) == {48}


@pytest.mark.parametrize("template", ["a photo of a {c}.", "a photo of a {label}", "a photo", "{} and {}"])
def test_a_template_without_a_place_for_the_class_is_refused(template):
    with pytest.raises(ClipftError, match="exactly one {}"):
        spec_of("a.csv", **{"data.caption_template": template})


def test_a_card_of_an_earlier_release_is_read():
    old = {"format": 1, "domain": "general", "source": "a.csv", "rows": 1, "rejected": 0, "counts": {}, "classes": {}}
    read = DatasetCard.from_json({**old, "content": "x"})
    assert read.account.taken == 0 and read.origin == ""


# What a stranger's names mean ---------------------------------------------------------------------------------------------


def tree(folder: Path, *names: str, images: int = 4) -> Path:
    for number, name in enumerate(names):
        for i in range(images):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            made_image("red", 50 * number + i).save(path)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validierung", "Prüfung"),
        ("entraînement", "validation", "test"),
        ("Entrenamiento", "Validación", "Prueba"),
        ("训练集", "验证集", "测试集"),
        ("Trainingsdaten", "val", unicodedata.normalize("NFD", "Prüfung")),
    ],
)
def test_splits_in_other_languages_are_splits(home, tmp_path, names):
    result = ingest.run(spec_of(tree(tmp_path / "s", *(f"{split}/{label}" for split in names for label in ("good", "bad")))))
    rows = taken(result)
    assert set(rows["label"]) == {"good", "bad"} and rows["split"].nunique() == 3 and set(rows["group"]) == {""}


def test_patients_in_other_languages_are_groups(home, tmp_path):
    names = [f"Paziente_{n:03d}/{label}" for n in range(5) for label in ("sano", "malato")]
    rows = taken(ingest.run(spec_of(tree(tmp_path / "s", *names))))
    assert set(rows["label"]) == {"sano", "malato"} and rows["group"].nunique() == 5


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train", "holdout"), "1 of 2 folders of level 1 are called like a split, and the level was read as class."),
        (("Xylo_1", "Xylo_2", "Xylo_3", "Xylo_4"), "called alike but for a number"),
        (
            ("Wing", "wing", unicodedata.normalize("NFC", "Käfer"), unicodedata.normalize("NFD", "Käfer")),
            "1 of 3 classes are called like",
        ),
        (("images", "masks"), "2 of 2 classes of level 1 are called like folders of images, masks, annotations or copies."),
        (("cat", "NaN"), "4 rows have a class that reads like a missing value"),
    ],
)
def test_names_that_may_mean_something_else_are_worth_a_look(home, tmp_path, names, said):
    assert any(said in warning for warning in card(ingest.run(spec_of(tree(tmp_path / "s", *names)))).account.warnings)
    plain = card(ingest.run(spec_of(tree(tmp_path / "plain", "cat", "dog")))).account
    assert not any(said.split(" of ")[-1] in warning for warning in plain.warnings)


def test_two_columns_of_one_name_are_refused(home, images):
    images.write_text(images.read_text().replace("group", "label", 1))
    with refuses("source.unreadable_file", "several columns called 'label'"):
        ingest.run(spec_of(images))


def test_captions_of_ids_that_several_images_have_are_nobodys_and_lost_ones_are_counted(home, images):
    entries = [{"id": min(i, 1), "file_name": name} for i, name in enumerate(("red-000.png", "red-001.png", "red-002.png"))]
    notes = [{"image_id": 0, "caption": "one"}, {"image_id": 1, "caption": "whose?"}, {"image_id": 9, "caption": "nobody's"}]
    path = images.parent / "captions.json"
    path.write_text(json.dumps({"images": entries, "annotations": notes}))
    result = ingest.run(spec_of(path))
    assert list(taken(result)["caption"]) == ["one"] and card(result).account.refused == {"ids of several images": 2}
    assert any("1 captions name an image" in warning for warning in card(result).account.warnings)


def test_columns_that_are_not_used_are_named_and_those_that_read_like_groups_or_splits_stand_out(home, images):
    lines = images.read_text().splitlines()
    images.write_text(
        "\n".join([lines[0].replace("group", "patient_id") + ",fold,note", *(f"{line},1,train" for line in lines[1:])])
    )
    said = card(ingest.run(spec_of(images))).account
    assert "Columns that are not used: 'patient_id', 'fold', 'note'." in said.understood
    assert [w for w in said.warnings if "data.group_column?" in w] and [w for w in said.warnings if "data.split_column?" in w]
    named = card(ingest.run(spec_of(images, **{"data.group_column": "patient_id", "data.split_column": "note"}))).account
    assert not [w for w in named.warnings if "_column?" in w]


def test_a_quote_that_is_never_closed_hides_no_rows_in_silence(home, images):
    lines = images.read_text().splitlines()
    images.write_text("\n".join([*lines[:3], 'red-002.png,"a 5 inch, square,red square,', *lines[4:]]))
    result = ingest.run(spec_of(images))
    assert len(taken(result)) == 2 and card(result).account.refused == {"quote that is not closed": 1}
    images.write_text(
        "\n".join([*lines[:3], 'red-002.png,a 5" square,red square,', *lines[4:]])
    )  # a mark within a cell is none
    assert card(ingest.run(spec_of(images))).rows == len(lines) - 1


def test_json_with_a_list_for_each_split_is_read_whole_and_other_lists_are_refused(home, images):
    rows = {name: [{"image": f"red-{n:03d}.png", "caption": f"thing {n}"}] for n, name in enumerate(("train", "dev", "test"))}
    path = images.parent / "splits.json"
    path.write_text(json.dumps({"version": 1, **rows}))
    assert dict(taken(ingest.run(spec_of(path)))[["name", "split"]].to_numpy()) == {
        "red-000.png": "train", "red-001.png": "val", "red-002.png": "test"
    }  # fmt: skip
    path.write_text(json.dumps({"train": rows["train"], "extra": rows["test"]}))
    with refuses("source.unreadable_file", "'train', 'extra'"):
        ingest.run(spec_of(path))


def test_a_table_without_rows_says_so(home, images):
    images.write_text("image,caption\n")
    with refuses("source.no_usable_rows", "it holds none"):
        ingest.run(spec_of(images))

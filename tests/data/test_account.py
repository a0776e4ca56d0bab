"""What a source holds and how it was understood is said: in the log, on the card, on the report. One row never hides the rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import made_image, write_images

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

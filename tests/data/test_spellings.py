"""One thing under several spellings: a patient's numbers, names of files on a Mac, names in archives."""

from pathlib import Path

import pandas as pd
import pydicom
import pytest

from clipft_tasks.stages import ingest, version
from data.conftest import spec_of, taken
from data.test_identity import photo

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
PATIENTS = 8


def straddling(frame: pd.DataFrame, of: list[int]) -> list[int]:
    """Which of those that rows belong to have rows in two splits."""
    found = frame.assign(of=of).groupby("of")["split"].nunique()
    return found.index[found > 1].tolist()


@pytest.fixture
def table(tmp_path):
    """A function: the table whose group column is what a function makes of (patient, visit); four images a patient."""

    def make(group, name: str = "images.csv") -> Path:
        rows = []
        for number in range(4 * PATIENTS):
            photo(number).save(tmp_path / f"{number}.png")
            label = "red" if number % 8 < 4 else "blue"
            rows.append({"image": f"{number}.png", "caption": f"{number}", "label": label, "group": group(*divmod(number, 4))})
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return make


SPELLED = ["P-{:02}", "p-{:02} ", "P{:03}", "P {}"]


def test_a_patient_whose_number_is_spelled_in_four_ways_is_in_one_split(home, table):
    made = ingest.run(spec_of(table(lambda patient, visit: SPELLED[visit].format(patient))))
    frame = taken(made)
    assert not straddling(frame, [int(caption) // 4 for caption in frame["caption"]])
    assert len(set(frame["split"])) == 3
    card = (Path(made.staging) / "datacard.json").read_text()
    assert "groups are called like another one" in card


def test_a_patient_who_comes_later_under_another_spelling_stays_on_their_side(home, table):
    first = table(lambda patient, visit: SPELLED[0].format(patient))
    rows = pd.read_csv(first)
    rows[rows["image"].str.removesuffix(".png").astype(int) % 4 < 2].to_csv(first, index=False)
    spec = spec_of(first)
    version.run(spec, ingest.run(spec).staging)
    frame = taken(ingest.run(spec_of(table(lambda patient, visit: SPELLED[visit].format(patient), "later.csv"))))
    assert len(frame) == 4 * PATIENTS
    assert not straddling(frame, [int(caption) // 4 for caption in frame["caption"]])


def scan(path: Path, number: int, **fields: object) -> None:
    header = pydicom.dcmread(FILES / "CT_small.dcm")
    for name in ("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        header.pop(name, None)
    values = photo(number, 128).convert("L")
    header.PixelData = b"".join(bytes((value, 0)) for value in values.tobytes())
    header.Rows, header.Columns = 128, 128
    for name, value in fields.items():
        setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)


@pytest.mark.parametrize(
    "fields",
    [
        lambda patient, visit: {"PatientID": ["AB-{}", "ab-{}", "AB{}", "AB-0{}"][visit].format(patient)},
        lambda patient, visit: {"PatientID": f"A{patient}"} | ({"IssuerOfPatientID": "ward"} if visit % 2 else {}),
        lambda patient, visit: {"PatientID": f"{'AXTU'[visit]}{patient}", "StudyInstanceUID": f"1.2.{patient}"},
        lambda patient, visit: {"PatientID": f"A{patient}" if visit else "", "StudyInstanceUID": f"1.2.{patient}"},
        lambda patient, visit: {"PatientID": f"{visit}{patient}", "OtherPatientIDs": [f"M{patient}"]},
    ],
    ids=["spelled otherwise", "an issuer in some files", "one study, other numbers", "no number in some files", "merged"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_of_one_patient_are_in_one_split_whatever_their_numbers(home, tmp_path, fields):
    for number in range(4 * PATIENTS):
        scan(tmp_path / "scans" / f"{number:02}", number, **fields(*divmod(number, 4)))
        (tmp_path / "scans" / f"{number:02}.txt").write_text(f"scan {number}")
    spec = spec_of(f"dicom:{tmp_path / 'scans'}", domain="medical")
    made = ingest.run(spec)
    frame = taken(made)
    assert len(frame) == 4 * PATIENTS and len(set(frame["split"])) == 3
    assert not straddling(frame, [int(caption.split()[1]) // 4 for caption in frame["caption"]])
    assert "share a study or a patient's number" in (Path(made.staging) / "datacard.json").read_text()
    version.run(spec, made.staging)  # what ties them is known to later versions, and when the rows are split anew
    again = taken(ingest.run(spec_of("", domain="medical", **{"data.split_seed": 5}), resplit=True))
    assert not straddling(again, [int(caption.split()[1]) // 4 for caption in again["caption"]])

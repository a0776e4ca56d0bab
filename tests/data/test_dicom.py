"""Real DICOM files (those that pydicom ships) become images without names, and patients hold splits together."""

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.data import dicom, shards
from clipft_tasks.data.images import BadImageError
from clipft_tasks.data.readers import open_source
from clipft_tasks.spec import DataSpec
from clipft_tasks.stages import ingest
from data.conftest import rejected, spec_of, taken

FILES = Path(pydicom.__file__).parent / "data" / "test_files"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's remarks about odd headers


def png(name: str) -> Image.Image:
    return Image.open(io.BytesIO(dicom.as_png((FILES / name).read_bytes())))


def changed(name: str, **fields: object) -> bytes:
    header = pydicom.dcmread(FILES / name)
    for field, value in fields.items():
        if field != "PixelPaddingValue":
            setattr(header, field, value)
            continue
        header.pop(field, None)
        if isinstance(value, int):
            header.add_new(field, "SS" if value < 0 else "US", value)
    out = io.BytesIO()
    header.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        ("CT_small.dcm", (128, 128), "I;16"),
        ("MR_small_RLE.dcm", (64, 64), "I;16"),
        ("MR_small_bigendian.dcm", (64, 64), "I;16"),
        ("MR_small_jp2klossless.dcm", (64, 64), "I;16"),
        ("examples_rgb_color.dcm", (320, 240), "RGB"),
        ("examples_palette.dcm", (800, 350), "RGB"),
        ("examples_ybr_color.dcm", (320, 240), "RGB"),
        ("SC_rgb_rle_16bit_2frame.dcm", (100, 100), "RGB"),
        ("image_dfl.dcm", (512, 512), "I;16"),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64), "I;16"),
        ("JPEGLSNearLossless_16.dcm", (10, 50), "I;16"),
        ("JPGExtended.dcm", (256, 1024), "I;16"),  # 12 bits
        ("SC_rgb_jls_lossy_line.dcm", (100, 100), "RGB"),
    ],
)
def test_files_of_many_codings_are_read(name, size, mode):
    image = png(name)
    assert image.size == size and image.mode == mode
    assert np.asarray(image).std() > 0


def test_one_image_is_the_same_whatever_codes_it():
    plain = np.asarray(png("MR_small.dcm"))
    for name in ("MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm"):
        assert (np.asarray(png(name)) == plain).all(), name


def test_what_the_file_asks_to_be_shown_is_what_is_taken():
    """A window cuts what lies outside it, as on a viewer's screen; MONOCHROME1 has white at the low end."""
    raw = pydicom.dcmread(FILES / "CT_small.dcm")
    hounsfield = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    shown = np.asarray(Image.open(io.BytesIO(dicom.as_png(changed("CT_small.dcm", WindowCenter=40, WindowWidth=400)))))
    assert (shown[hounsfield < -160] == 0).all() and (shown[hounsfield > 240] == 65535).all()
    inside = (hounsfield > -150) & (hounsfield < 230)
    assert np.corrcoef(shown[inside], hounsfield[inside])[0, 1] > 0.999
    turned = np.asarray(Image.open(io.BytesIO(dicom.as_png(changed("CT_small.dcm", PhotometricInterpretation="MONOCHROME1")))))
    assert (turned == 65535 - np.asarray(png("CT_small.dcm"))).all()


def shown(data: bytes, frame: int | None = None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(dicom.as_png(data, frame=frame))))


def gray(values: np.ndarray, **fields: object) -> bytes:
    """A CT slice with these pixels."""
    plain = {"Rows": values.shape[0], "Columns": values.shape[1], "PixelData": values.tobytes(), "RescaleIntercept": 0}
    plain |= {"PixelRepresentation": int(values.dtype.kind == "i"), "PixelPaddingValue": None, "BitsStored": 16, "HighBit": 15}
    return (
        changed("CT_small.dcm", **plain, **fields)
        if not fields.keys() & plain.keys()
        else changed("CT_small.dcm", **(plain | fields))
    )


RAMP = np.tile(np.linspace(0, 300, 100).astype(np.uint16), (100, 1))


def test_a_window_is_one_scale_for_all_images():
    """No image is stretched to its own range where the file has a window."""
    dark, light = (np.full((64, 64), value, np.uint16) for value in (105, 205))
    dark[0], light[0] = 100, 200
    one, two = (shown(gray(values, WindowCenter=128, WindowWidth=256)) for values in (dark, light))
    assert two.mean() - one.mean() == pytest.approx(100 / 255 * 65535, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": 0, "WindowWidth": 0},
        {"RescaleSlope": None, "WindowCenter": 150, "WindowWidth": 301},
        {"VOILUTFunction": "", "WindowCenter": 150, "WindowWidth": 301},
        {"WindowCenter": "", "WindowWidth": 20},
        {"RescaleSlope": 0},
    ],
    ids=["width 0", "no slope", "no function", "no center", "slope 0"],
)
def test_display_attributes_that_cannot_be_applied_refuse_no_pixels(fields):
    found = shown(gray(RAMP, **fields))
    assert found.min() < 300 and found.max() > 65_000 and (np.diff(found[0].astype(int)) >= 0).all()


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("padding", "type"), [(65535, np.uint16), (-32768, np.int16)])
def test_padding_is_black_and_takes_no_part_in_the_range(kind, padding, type):
    values = RAMP.astype(type)
    values[:, :40] = padding
    found = shown(gray(values, PixelPaddingValue=padding, PhotometricInterpretation=kind))
    assert (found[:, :40] == 0).all() and np.ptp(found[:, 40:].astype(int)) == 65535


def enhanced() -> bytes:
    """Three frames of one range, each with its own window in the functional groups."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    own = []
    for center in (50, 150, 250):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 101
        group.FrameVOILUTSequence = Sequence([window])
        own.append(group)
    data = np.stack([RAMP] * 3)
    fields = {"NumberOfFrames": 3, "PixelData": data.tobytes(), "PerFrameFunctionalGroupsSequence": Sequence(own)}
    return gray(RAMP, **fields)


def test_each_frame_is_shown_by_its_own_window():
    for frame, (black, white) in enumerate(((0, 100), (100, 200), (200, 300))):
        found = shown(enhanced(), frame)
        assert (found[black > RAMP] == 0).all() and (found[white < RAMP] == 65535).all() and np.ptp(found.astype(int)) > 64_000


@pytest.mark.parametrize(("how", "rows", "left"), [("auto", 1, 2), ("first", 1, 2), ("all", 3, 0)])
def test_frames_that_are_left_out_are_counted(home, tmp_path, how, rows, left):
    (tmp_path / "x.dcm").write_bytes(enhanced())
    source = open_source(f"dicom:{tmp_path}", DataSpec(frames=how))
    found = list(source.rows())
    assert len(found) == rows and source.account.passed_over["frames of files with several"] == left
    assert len({row.group for row in found}) == 1 and len({row.image_bytes() for row in found}) == rows


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: (FILES / "reportsi.dcm").read_bytes(), "no image in it .modality SR"),
        (lambda: (FILES / "rtdose_1frame.dcm").read_bytes(), "map of doses"),
        (lambda: (FILES / "MR_truncated.dcm").read_bytes(), "cut short or broken|coded as"),
        (lambda: changed("CT_small.dcm", BurnedInAnnotation="YES"), "burnt into"),
        (lambda: changed("CT_small.dcm", Rows=60_000, Columns=60_000), "more than the limit"),
        (lambda: (FILES / "CT_small.dcm").read_bytes()[:400], "header|cut short|no image|no patient"),
        (lambda: b"\0" * 128 + b"DICM" + b"garbage" * 50, "header|no image"),
    ],
    ids=["report", "dose", "cut", "burnt in", "bomb", "cut header", "garbage"],
)
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(BadImageError, match=reason):
        dicom.as_png(data())


@pytest.fixture
def studies(home, tmp_path) -> Path:
    """A tree as archives export one: no endings, an index, a report that is no image."""
    root = tmp_path / "studies"
    for label, files in {
        "head": ["CT_small.dcm", "JPEG2000.dcm"],
        "body": ["MR_small.dcm", "examples_overlay.dcm", "reportsi.dcm"],
    }.items():
        (root / label).mkdir(parents=True)
        for file in files:
            shutil.copy(FILES / file, root / label / Path(file).stem)
    (root / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (root / "readme.txt").write_text("no image")
    (root / "body" / "MR_small.txt").write_text("A brain.\n")
    return root


def test_a_tree_of_studies_becomes_rows(studies):
    result = ingest.run(spec_of(f"dicom:{studies}", domain="medical"))
    frame = taken(result)
    assert set(frame["label"]) == {""} and set(frame["format"]) == {"PNG"} and len(frame) == 4
    assert sorted(frame["caption"])[0] == "A brain." and frame["name"].str.fullmatch("dicom/[0-9a-f]{16}").all()
    assert [row["reason"] for row in rejected(result).values()] == ["there is no image in it (modality SR)"]


def test_folders_are_classes_where_that_is_asked_for(studies):
    frame = taken(ingest.run(spec_of(f"dicom:{studies}", domain="medical", **{"data.levels": "class"})))
    assert sorted(frame["label"]) == ["body", "body", "head", "head"]


def test_no_name_leaves_the_hospital(studies):
    header = pydicom.dcmread(FILES / "CT_small.dcm", stop_before_pixels=True)
    result = ingest.run(spec_of(f"dicom:{studies}", domain="medical"))
    frame = taken(result)
    packed = b"".join(p.read_bytes() for p in Path(result.staging).rglob("*") if p.is_file())
    for told in (str(header.PatientID), str(header.PatientName), header.StudyInstanceUID):
        assert (
            told.encode() not in packed
            and not frame.astype(str).apply(lambda c, t=told: c.str.contains(t, regex=False)).any().any()
        )
    for row in frame.itertuples():
        data = shards.read(Path(result.staging, "shards"), shards.Place(row.shard, row.offset, row.length))
        assert data.startswith(b"\x89PNG")


def export(root: Path, **fields: object) -> Path:
    """A tree as archives export one: a folder a patient, a folder a study, files without ending, one without a preamble."""
    for number, patient in enumerate(("DOE_JOHN_19700102", "ROE_JANE_19610304", "POE_ANNE_19551231")):
        folder = root / patient / "20240101_CT_THORAX"
        folder.mkdir(parents=True)
        for image in range(3):
            pixels = np.random.default_rng(10 * number + image).integers(0, 2000, (128, 128)).astype(np.int16)
            said = {
                "PatientID": f"MRN{number}",
                "PatientName": patient.replace("_", "^"),
                "PixelData": pixels.tobytes(),
                **fields,
            }
            data = changed("CT_small.dcm", StudyInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.2.{number}.1", **said)
            (folder / f"IM{image}.dcm").write_bytes(data[132:] if image == 2 else data)
    return root


def test_folders_of_an_archive_name_nobody_anywhere(home, tmp_path, capsys):
    root = export(tmp_path / "export")
    (root / "DOE_JOHN_19700102" / "20240101_CT_THORAX" / "IM9.dcm").write_bytes(b"no DICOM")
    result = ingest.run(spec_of(f"dicom:{root}", domain="medical"))
    assert (result.rows, result.rejected) == (9, 1)
    everything = (
        b"".join(p.read_bytes() for p in Path(result.staging).rglob("*") if p.is_file()) + capsys.readouterr().out.encode()
    )
    for told in (b"DOE", b"JANE", b"19700102", b"MRN1", b"THORAX"):
        assert told not in everything
    assert taken(result)["group"].nunique() == 3 and set(taken(result)["caption"]) == {"a CT image."}


def test_a_class_that_is_the_patient_is_refused(home, tmp_path):
    root = export(tmp_path / "export")
    with refuses("source.no_usable_rows"):
        ingest.run(spec_of(f"dicom:{root}", domain="medical", **{"data.levels": "class"}))
    rows = list(open_source(f"dicom:{root}", DataSpec(levels="class")).rows())
    with pytest.raises(BadImageError, match="patient's name or number"):
        rows[0].image_bytes()
    rows = list(open_source(f"dicom:{root}", DataSpec(levels="group/class")).rows())
    assert {row.label for row in rows} == {"20240101_CT_THORAX"} and len({row.group for row in rows}) == 3


@pytest.mark.parametrize(
    ("gone", "groups"),
    [(("PatientID",), 3), (("PatientID", "StudyInstanceUID"), 3), (("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), 1)],
    ids=["study", "series", "frame of reference"],
)
@pytest.mark.parametrize("left", ["", "ANONYMOUS"])
def test_files_without_a_patient_are_grouped_by_what_they_still_share(home, tmp_path, gone, groups, left):
    root = export(tmp_path / "export", PatientID=left)
    for path in root.rglob("*.dcm"):
        header = pydicom.dcmread(path, force=True)
        for field in gone[1:]:
            setattr(header, field, "")
        header.save_as(path)
    source = open_source(f"dicom:{root}", DataSpec())
    rows = list(source.rows())
    assert len({row.group for row in rows}) == groups and all(row.group for row in rows)
    assert any(sentence.startswith("Groups: 9 rows by") for sentence in source.account.understood)


def test_one_patient_is_one_group_here_and_another_elsewhere(studies, monkeypatch, tmp_path):
    from clipft_tasks.core.settings import settings

    headers = [dicom.read_header((FILES / n).read_bytes()) for n in ("MR_small.dcm", "MR_small_RLE.dcm", "CT_small.dcm")]
    one, same, other = map(dicom.pseudonym, headers)
    assert one == same != other and len(one) == 16
    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path / "another"))
    settings.cache_clear()
    assert dicom.pseudonym(headers[0]) != one
    assert (tmp_path / "another" / "pseudonyms.key").stat().st_mode & 0o077 == 0


def test_without_label_or_report_the_caption_is_what_the_header_says(home, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "x").write_bytes(changed("CT_small.dcm", BodyPartExamined="CHEST", ViewPosition="PA", Modality="DX"))
    (row,) = open_source(f"dicom:{tmp_path / 'one'}", DataSpec()).rows()
    assert row.caption == "a radiograph of the chest, PA view."
    free = "CHEST of Smith, 1970-01-02"
    (tmp_path / "one" / "x").write_bytes(changed("CT_small.dcm", BodyPartExamined=free, ViewPosition="AP 3", Modality="DX"))
    (row,) = open_source(f"dicom:{tmp_path / 'one'}", DataSpec()).rows()
    assert row.caption == "a radiograph, AP 3 view."  # free text might name the patient


def test_a_table_may_name_dicom_files(home, tmp_path):
    shutil.copy(FILES / "CT_small.dcm", tmp_path / "a.dcm")
    (tmp_path / "t.csv").write_text("image,caption\na.dcm,a slice of a chest\n")
    (row,) = open_source(str(tmp_path / "t.csv"), DataSpec()).rows()
    assert row.image_bytes().startswith(b"\x89PNG")


def test_a_folder_without_dicom_is_named(home, tmp_path):
    with refuses("source.no_images", tmp_path):
        open_source(f"dicom:{tmp_path}", DataSpec())
    with refuses("source.not_found", "/nowhere"):
        open_source("dicom:/nowhere", DataSpec())


def test_what_lists_the_files_of_a_disk_is_no_row_and_may_be_the_source(home, tmp_path):
    folder = tmp_path / "disk"
    (folder / "DICOM").mkdir(parents=True)
    shutil.copy(FILES / "CT_small.dcm", folder / "DICOM" / "IM1")
    for name in ("DICOMDIR", "dicomdir.1"):
        shutil.copy(FILES / "dicomdirtests" / "DICOMDIR", folder / name)
    source = open_source(f"dicom:{folder / 'DICOMDIR'}", DataSpec())
    assert len(list(source.rows())) == 1 and source.account.passed_over == {"DICOMDIR files": 2}
    with refuses("source.not_found", "it is a file"):
        open_source(f"dicom:{folder / 'DICOM' / 'IM1'}", DataSpec())


@pytest.mark.parametrize(
    ("fields", "looked_at"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, True),
        ({"ConversionType": "WSD"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"ConversionType": "WSD", "BurnedInAnnotation": "NO"}, False),
        ({}, False),
    ],
)
def test_screens_that_may_show_names_are_worth_a_look(tmp_path, fields, looked_at):
    (tmp_path / "a.dcm").write_bytes(changed("CT_small.dcm", **fields))
    source = open_source(f"dicom:{tmp_path}", DataSpec())
    assert len(list(source.rows())) == 1
    assert any("secondary captures" in said for said in source.account.warnings) == looked_at


@pytest.mark.parametrize(
    ("fields", "caption"),
    [
        ({"BodyPartExamined": "CHEST DOE JOHN"}, "a CT image."),
        ({"BodyPartExamined": "DOE", "PatientName": "DOE^JOHN"}, "a CT image."),
        ({"BodyPartExamined": "T SPINE", "Modality": "ct"}, "a CT image of the t spine."),
    ],
)
def test_a_caption_of_the_header_names_nobody(fields, caption):
    header = pydicom.Dataset()
    for name, value in ({"Modality": "CT"} | fields).items():
        setattr(header, name, value)
    assert dicom.caption_of(header) == caption


def test_packed_files_among_studies_are_worth_a_look(tmp_path):
    shutil.copy(FILES / "CT_small.dcm", tmp_path / "a.dcm")
    (tmp_path / "b.dcm.gz").write_bytes(b"packed")
    assert "1 packed files" in " ".join(open_source(f"dicom:{tmp_path}", DataSpec()).account.warnings)

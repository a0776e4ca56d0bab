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
from clipft_tasks.data.images import BadImage
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
        setattr(header, field, value)
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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: (FILES / "reportsi.dcm").read_bytes(), "no image in it .modality SR"),
        (lambda: (FILES / "rtdose_1frame.dcm").read_bytes(), "map of doses"),
        (lambda: (FILES / "MR_truncated.dcm").read_bytes(), "cut short or broken|coded as"),
        (lambda: (FILES / "JPGExtended.dcm").read_bytes(), "coded as JPEG Extended"),
        (lambda: changed("CT_small.dcm", BurnedInAnnotation="YES"), "burnt into"),
        (lambda: changed("CT_small.dcm", Rows=60_000, Columns=60_000), "more than the limit"),
        (lambda: (FILES / "CT_small.dcm").read_bytes()[:400], "header|cut short|no image|no patient"),
        (lambda: b"\0" * 128 + b"DICM" + b"garbage" * 50, "header|no image"),
    ],
    ids=["report", "dose", "cut", "unknown coding", "burnt in", "bomb", "cut header", "garbage"],
)
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(BadImage, match=reason):
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
    frame = taken(result).set_index("name")
    assert set(frame.index) == {"head/CT_small", "head/JPEG2000", "body/MR_small", "body/examples_overlay"}
    assert frame.loc["body/MR_small", "caption"] == "A brain." and frame.loc["head/CT_small", "label"] == "head"
    assert list(rejected(result)) == ["body/reportsi"] and "SR" in rejected(result)["body/reportsi"]["reason"]


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

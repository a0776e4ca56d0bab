"""Archives, sheets of Excel, JPEG of 12 bits, JPEG 2000, trees of links and whole slides: what people have beside plain files."""

import datetime
import gzip
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import made_image
from fixtures.errors import refuses
from PIL import Image

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.data import archives, deep_jpeg
from clipft_tasks.data.images import BadImageError, open_image
from clipft_tasks.data.metadata import stripped
from clipft_tasks.data.readers import open_source
from clipft_tasks.data.readers.base import as_image
from clipft_tasks.spec import DataSpec
from clipft_tasks.stages import ingest
from data.conftest import rejected, same_rows, spec_of, taken


@pytest.fixture
def home(shared_home: Path) -> Path:
    return shared_home


def png(number: int = 0, color: str = "red") -> bytes:
    out = io.BytesIO()
    made_image(color, number).save(out, "PNG")
    return out.getvalue()


# Archives -------------------------------------------------------------------------------------------------------------


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_an_archive_is_the_folder_in_it_and_is_unpacked_once(home, tmp_path, monkeypatch):
    members = {f"My set/{label}/{n}.png": png(n, label) for label in ("red", "blue") for n in range(4)}
    path = zipped(tmp_path / "set.zip", members | {"__MACOSX/My set/red/._0.png": b"x", "My set/red/b.txt": b""})
    made = ingest.run(spec_of(path))
    assert taken(made)["label"].value_counts().to_dict() == {"red": 4, "blue": 4} and made.rejected == 0
    monkeypatch.setattr(zipfile, "ZipFile", None)  # there is no second look into it
    assert ingest.run(spec_of(path)).content == made.content


def test_nothing_of_an_archive_leaves_its_folder_and_what_stays_packed_is_counted(home, tmp_path):
    path = zipped(tmp_path / "bad.zip", {"cat/0.png": png(0), "dog/0.png": png(1, "blue"), "../../out.png": png(2),
                                         "/root.png": png(3), "..\\w.png": png(4), "C:/x.png": png(5), "cat/0.png/in.png": png(6)})  # fmt: skip
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    source = open_source(str(path), DataSpec())
    assert len(list(source.rows())) == 2
    assert source.account.passed_over == {
        "files of an archive that lead out of it": 4, "links in an archive": 1, "files of an archive with the name of another": 1
    }  # fmt: skip
    assert not list(home.rglob("out.png")) and not (tmp_path.parent / "out.png").exists()


def test_an_archive_that_unpacks_to_far_more_than_images_do_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    path = zipped(tmp_path / "bomb.zip", {f"a/{n}.png": bytes(2**22) for n in range(4)})
    with refuses("source.unreadable_file", "bomb.zip", "more than"):
        open_source(str(path), DataSpec())
    data = path.read_bytes().replace((2**22).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    (tmp_path / "liar.zip").write_bytes(data)  # one whose list promises little
    for cut in (data, path.read_bytes()[:500], b"PK\x03\x04", b""):
        (tmp_path / "liar.zip").write_bytes(cut)
        with refuses("source.unreadable_file", "liar.zip"):
            open_source(str(tmp_path / "liar.zip"), DataSpec())
    assert not list((home / "cache" / "sources").glob("*.building"))


def tarred(path: Path, members: dict[str, bytes], *more: tarfile.TarInfo, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("name", "mode"), [("set.tar.gz", "w:gz"), ("Set.TGZ", "w:gz"), ("set.tar.xz", "w:xz"), ("set.tar", "w:")]
)
def test_a_tar_archive_is_the_folder_in_it(home, tmp_path, name, mode):
    members = {f"./My set/{label}/{n}.png": png(n, label) for label in ("red", "blue") for n in range(4)}
    path = tarred(tmp_path / name, members, mode=mode)
    made = ingest.run(spec_of(path))
    assert taken(made)["label"].value_counts().to_dict() == {"red": 4, "blue": 4} and made.rejected == 0


def test_a_plain_tar_with_texts_beside_its_images_is_webdataset(home, tmp_path):
    path = tarred(tmp_path / "shard.tar", {"a.png": png(0), "a.cls": b"red", "b/c.png": png(1), "b/c.cls": b"blue"}, mode="w:")
    assert {row.label for row in open_source(str(path), DataSpec()).rows()} == {"red", "blue"}
    assert {row.label for row in open_source(f"webdataset:{path}", DataSpec()).rows()} == {"red", "blue"}


def test_a_table_in_an_archive_is_named_below_it(home, tmp_path, images, as_csv):
    for path in (tmp_path / "all.tar.gz", tmp_path / "all.zip"):
        members = {f"set/{file.name}": file.read_bytes() for file in images.parent.iterdir()}
        tarred(path, members) if path.suffix == ".gz" else zipped(path, members)
        assert set(taken(ingest.run(spec_of(path / "images.csv")))["key"]) == set(as_csv["key"])
        for beyond in ("other.csv", "../images.csv", "../../../../etc"):
            with refuses("source.not_found", "the archive holds no"):
                open_source(f"{path}/{beyond}", DataSpec())


def test_nothing_of_a_tar_leaves_its_folder_and_links_and_devices_stay_packed(home, tmp_path):
    link, hard, device = (tarfile.TarInfo(f"cat/{name}.png") for name in ("link", "hard", "device"))
    (link.type, link.linkname), (hard.type, hard.linkname), device.type = (
        (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../../etc/passwd"), tarfile.CHRTYPE,
    )  # fmt: skip
    members = {
        "cat/0.png": png(0),
        "dog/0.png": png(1, "blue"),
        "../../out.png": png(2),
        "/root.png": png(3),
        "cat/0.png/in.png": png(4),
    }
    source = open_source(str(tarred(tmp_path / "bad.tar.gz", members, link, hard, device)), DataSpec())
    assert len(list(source.rows())) == 2
    assert source.account.passed_over == {
        "files of an archive that lead out of it": 2, "links in an archive": 2, "devices in an archive": 1,
        "files of an archive with the name of another": 1,
    }  # fmt: skip
    assert not list(home.rglob("out.png")) and not (tmp_path.parent / "out.png").exists()


def test_a_tar_that_is_a_bomb_or_broken_is_refused(home, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    path = tarred(tmp_path / "bomb.tar.gz", {f"a/{n}.png": bytes(2**22) for n in range(4)})
    with refuses("source.unreadable_file", "bomb.tar.gz", "more than"):
        open_source(str(path), DataSpec())
    name = tarfile.TarInfo("long")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**40
    huge = gzip.compress(name.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    good = tarred(tmp_path / "good.tar", {f"a/{n}.png": png(n) for n in range(4)}, mode="w:").read_bytes()
    end = good.rindex(b"a/3.png")
    for data in (
        huge,
        gzip.compress(good)[:-300],
        gzip.compress(good[:end]),
        gzip.compress(good[: end + 600]),
        b"",
        b"\x1f\x8b",
    ):
        (tmp_path / "cut.tar.gz").write_bytes(data)
        with refuses("source.unreadable_file", "cut.tar.gz"):
            open_source(str(tmp_path / "cut.tar.gz"), DataSpec())
    assert not list((home / "cache" / "sources").glob("*.building"))


@pytest.mark.parametrize("name", ["set.7z", "set.rar", "set.tar.zst"])
def test_archives_of_other_kinds_are_refused_with_the_way_out(home, tmp_path, name):
    (tmp_path / name).write_bytes(b"7z\xbc\xaf")
    with refuses("source.unreadable_file", name, "not read", "Unpack it"):
        open_source(str(tmp_path / name), DataSpec())


# Sheets ---------------------------------------------------------------------------------------------------------------


def test_a_sheet_gives_the_rows_of_the_same_table(as_csv, images):
    path = images.with_name("table.xlsx")
    with pd.ExcelWriter(path) as workbook:
        pd.DataFrame({"note": ["not this one"]}).to_excel(workbook, sheet_name="about", index=False)
        pd.read_csv(images, dtype=str, keep_default_na=False).to_excel(workbook, sheet_name="rows", index=False)
    made = ingest.run(spec_of(path))
    pd.testing.assert_frame_equal(same_rows(taken(made)), same_rows(as_csv))
    assert "Of 2 sheets one was read." in open_source(str(path), DataSpec()).account.warnings


def test_cells_of_a_sheet_are_what_a_person_sees(home, tmp_path):
    import openpyxl

    workbook = openpyxl.Workbook()
    one = workbook.active
    one.append(["image", "caption", "label", "group"])
    cells = [
        (datetime.date(2024, 3, 1), 7), (datetime.datetime(2024, 3, 1, 9, 30), 12345678901), (3.0, "007"), (2.5, 42), (True, 1),
        ("x", 1234567890123456789), ("=1/0", 3),
    ]  # fmt: skip
    for number, (caption, group) in enumerate(cells):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        one.append([f"{number}.png", caption, "red", group])
    one["D5"].number_format = "00000"
    one["B8"].value, one["B8"].data_type = "#DIV/0!", "e"
    workbook.save(tmp_path / "cells.xlsx")
    rows = list(open_source(str(tmp_path / "cells.xlsx"), DataSpec()).rows())
    assert [row.caption for row in rows[:5]] == ["2024-03-01", "2024-03-01 09:30:00", "3", "2.5", "TRUE"]
    assert [row.group for row in rows[:5]] == ["7", "12345678901", "007", "00042", "1"]
    for row, why in zip(rows[5:], ("fifteen digits", "#DIV/0!"), strict=True):
        with pytest.raises(BadImageError, match=why):
            row.image_bytes()


@pytest.mark.parametrize("content", [b"what?", b"", b"PK\x03\x04"])
def test_what_is_no_sheet_is_refused(home, tmp_path, content):
    (tmp_path / "a.xlsx").write_bytes(content)
    with refuses("source.unreadable_file", "a.xlsx"):
        open_source(str(tmp_path / "a.xlsx"), DataSpec())


# Deep JPEG and JPEG 2000 ----------------------------------------------------------------------------------------------

RAMP = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)


def deep(values: np.ndarray = RAMP) -> bytes:
    return pytest.importorskip("imagecodecs").jpeg8_encode(values, level=98, bitspersample=12)


def test_a_jpeg_of_twelve_bits_keeps_its_values(home, tmp_path):
    found = np.asarray(Image.open(io.BytesIO(as_image(deep()))))
    assert found.dtype == np.uint16 and np.abs(found.astype(int) - RAMP).max() < 30
    for number, label in enumerate(("one", "two")):
        (tmp_path / label).mkdir()
        (tmp_path / label / f"{number}.jpg").write_bytes(deep(RAMP if number else RAMP[::-1]))
    assert set(taken(ingest.run(spec_of(tmp_path)))["format"]) == {"PNG"}
    color = np.stack([RAMP, RAMP // 2, RAMP // 4], -1)
    assert np.asarray(Image.open(io.BytesIO(as_image(deep(color))))).shape == (48, 64, 3)


@pytest.mark.parametrize("how", ["cut", "huge", "garbage"])
def test_a_broken_jpeg_of_twelve_bits_is_refused(how):
    data = bytearray(deep())
    at = data.find(b"\xff\xc1")
    match how:
        case "cut":
            data = data[: at + 30]
        case "huge":
            data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
        case "garbage":
            data[at + 19 :] = os.urandom(300)
    assert deep_jpeg.is_deep(bytes(data))
    with pytest.raises(BadImageError):
        image = open_image(as_image(bytes(data)), gray_bits=16)
        raise BadImageError(f"decoded what there was: {image.width}")  # libjpeg fills up what it cannot read


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_gray_of_jpeg_2000_is_read_as_it_is_stored(bits):
    codecs = pytest.importorskip("imagecodecs")
    values = (RAMP >> 4).astype(np.uint8) if bits == 8 else RAMP << (bits - 12)
    image = open_image(codecs.jpeg2k_encode(values, level=0, bitspersample=bits), gray_bits=bits)
    assert image.format == "JPEG2000" and np.abs(np.asarray(image.rgb)[:, :, 0].astype(int) - (RAMP >> 4)).max() <= 1


@pytest.mark.parametrize("ending", ["jp2", "j2k"])
def test_jpeg_2000_files_are_rows_without_what_they_say_beside_the_pixels(home, tmp_path, ending):
    for number, label in enumerate(("red", "blue")):
        (tmp_path / label).mkdir()
        out = io.BytesIO()
        made_image(label, number).save(out, f"{'JPEG2000'}", no_jp2=ending == "j2k", comment="Dr. Jane Doe")
        data = out.getvalue()
        if ending == "jp2":
            note = b"<x>Jane Doe 52.5N</x>"
            data = data[:12] + data[12:32] + (8 + len(note)).to_bytes(4, "big") + b"xml " + note + data[32:]
        (tmp_path / label / f"{number}.{ending}").write_bytes(data)
        assert b"Doe" in data and b"Doe" not in stripped(data)
        pd.testing.assert_frame_equal(
            *(pd.DataFrame(np.asarray(open_image(d, gray_bits=8).rgb)[:, :, 0]) for d in (data, stripped(data)))
        )
        for cut in range(0, len(data), max(1, len(data) // 40)):
            stripped(data[:cut])  # whatever it is, it comes back
    made = ingest.run(spec_of(tmp_path))
    assert set(taken(made)["format"]) == {"JPEG2000"} and made.rows == 2
    assert b"Doe" not in b"".join(p.read_bytes() for p in Path(made.staging).rglob("*.tar"))


# Links ----------------------------------------------------------------------------------------------------------------


def labels_of(source) -> dict[str, int]:
    labels: dict[str, int] = {}
    for row in source.rows():
        try:
            row.image_bytes()
        except BadImageError:
            continue
        labels[row.label] = labels.get(row.label, 0) + 1
    return labels


@pytest.mark.parametrize("layout", ["hub", "dvc", "asked"])
def test_a_tree_of_links_into_the_cache_that_made_it_is_read(home, tmp_path, layout):
    store = {
        "hub": tmp_path / "repo" / "blobs",
        "dvc": tmp_path / "repo" / ".dvc" / "cache" / "files",
        "asked": tmp_path / "far",
    }[layout]
    root = {"hub": tmp_path / "repo" / "snapshots" / "abc"}.get(layout, tmp_path / "repo" / "data")
    for label in ("red", "blue"):
        for number in range(3):
            store.mkdir(parents=True, exist_ok=True)
            (store / f"{label}{number}").write_bytes(png(number, label))
            (root / label).mkdir(parents=True, exist_ok=True)
            (root / label / f"{number}.png").symlink_to(os.path.relpath(store / f"{label}{number}", root / label))
    (root / "red" / "9.png").symlink_to("/etc/hostname")
    options = DataSpec(links_root=str(store) if layout == "asked" else "")
    assert labels_of(open_source(str(root), options)) == {"red": 3, "blue": 3}
    made = ingest.run(spec_of(root, **{"data.links_root": options.links_root}))
    assert [row["reason"] for row in rejected(made).values() if "data.links_root" in row["reason"]] and made.rejected == 1
    if layout == "asked":
        with refuses("source.no_usable_rows", "data.links_root"):
            ingest.run(spec_of(root))


def test_linked_folders_are_read_once_and_loops_end(home, tmp_path):
    root, far = tmp_path / "set", tmp_path / "far"
    for place, label in ((root / "red", "red"), (far / "blue", "blue")):
        place.mkdir(parents=True)
        for number in range(3):
            (place / f"{number}.png").write_bytes(png(number, label))
    (root / "again").symlink_to(root / "red")
    (root / "red" / "up").symlink_to(root)
    (root / "blue").symlink_to(far / "blue")
    (far / "blue" / "loop").symlink_to(far)
    source = open_source(str(root), DataSpec(levels="class"))
    assert labels_of(source) == {"red": 3} and "data.links_root" in " ".join(source.account.warnings)
    source = open_source(str(root), DataSpec(levels="class", links_root=str(far)))
    assert labels_of(source) == {"red": 3, "blue": 3}
    assert source.account.passed_over == {"linked folders that are read already": 3}
    with refuses("source.not_found", "data.links_root"):
        open_source(str(root), DataSpec(links_root=str(tmp_path / "none")))


# Whole slides ---------------------------------------------------------------------------------------------------------


def slide(path: Path, microns: float = 0.25, scale: bool = True) -> Path:
    """1024 x 768 pixels of glass with tissue in the left upper quarter, at three scales."""
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(len(path.name))
    pixels = np.full((768, 1024, 3), 245, np.uint8)
    pixels[:384, :512] = rng.integers(60, 200, (384, 512, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"resolution": (10_000 / microns,) * 2, "resolutionunit": "CENTIMETER"} if scale else {}
    with tifffile.TiffWriter(path) as out:
        for level, part in enumerate((pixels, pixels[::2, ::2], pixels[::4, ::4])):
            out.write(
                part,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subfiletype=bool(level),
                **(about if not level else {}),
            )
    return path


def test_slides_become_tiles_of_one_scale_grouped_by_slide(home, tmp_path):
    pytest.importorskip("openslide")
    for label in ("tumor", "normal"):
        slide(tmp_path / label / f"DOE_JOHN-{label}.tif")
    more = {"data.tile_pixels": 64, "data.tile_microns": 0.5, "domain": "medical"}
    made = ingest.run(spec_of(f"slides:{tmp_path}", **more))
    frame = taken(made)
    # 128 of the slide's pixels are a tile: 8 x 6 of them, 4 x 3 with tissue.
    assert made.rows == 24 and set(frame["width"]) == set(frame["height"]) == {64}
    assert frame.groupby("group")["split"].nunique().max() == 1 and frame["group"].nunique() == 2
    assert frame["label"].value_counts().to_dict() == {"tumor": 12, "normal": 12}
    account = open_source(f"slides:{tmp_path}", spec_of("x", **more).data)
    list(account.rows())
    assert account.account.passed_over["tiles without tissue"] == 2 * 36
    everything = b"".join(p.read_bytes() for p in Path(made.staging).rglob("*") if p.is_file())
    assert b"DOE" not in everything


def test_slides_that_cannot_be_had_so_are_refused_with_the_reason(home, tmp_path):
    pytest.importorskip("openslide")
    slide(tmp_path / "a" / "good.tif")
    slide(tmp_path / "a" / "coarse.tif", microns=1.0)
    slide(tmp_path / "a" / "scaleless.tif", scale=False)
    (tmp_path / "a" / "broken.svs").write_bytes(b"no slide")
    made = ingest.run(spec_of(f"slides:{tmp_path}", **{"data.tile_pixels": 64}))
    reasons = " ".join(row["reason"] for row in rejected(made).values())
    assert made.rows == 12 and made.rejected == 3
    assert "1 microns" in reasons and "how many microns" in reasons and "OpenSlide" in reasons
    with refuses("source.no_images", "slide"):
        open_source(f"slides:{tmp_path / 'none'}", DataSpec())


@pytest.mark.parametrize(("missing", "code"), [("openslide", "source.missing_package")])
def test_what_an_extra_is_for_says_its_name_where_it_is_missing(home, tmp_path, monkeypatch, missing, code):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(ClipftError, match=r"clipft\[slides\]") as caught:
        open_source(f"slides:{tmp_path}", DataSpec())
    assert caught.value.code == code
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(BadImageError, match=r"clipft\[codecs\]"):
        deep_jpeg.decode(b"\xff\xd8")

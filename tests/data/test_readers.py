"""Readers by name: those that ship, those of other packages, and `module:Class`."""

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import write_images
from fixtures.errors import refuses

from clipft_tasks.core import plugins
from clipft_tasks.data import readers
from clipft_tasks.data.readers import Reader, Row, Source, open_source
from clipft_tasks.spec import DataSpec, form, reader_catalog
from clipft_tasks.stages import ingest
from data.conftest import spec_of, taken

PROJECT = Path(__file__).resolve().parents[2]


class Squares(Reader):
    """Made images of a folder, as many as the argument says."""

    folder = Path()

    @classmethod
    def open(cls, argument: str, options: DataSpec) -> Source:
        files = sorted(cls.folder.glob("*.png"))[: int(argument)]

        def rows() -> Iterator[Row]:
            for file in files:
                yield Row(where=file.name, image_bytes=file.read_bytes, key=file.stem, label=file.stem.partition("-")[0])

        return Source(rows, license="of the test", name=f"squares:{argument}", total=len(files))


NOT_A_READER = "nor a class"


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Squares, "folder", write_images(tmp_path / "squares", 12).parent)
    return Squares.folder


# Those that ship ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", reader_catalog.READERS)
def test_every_reader_of_the_catalog_is_there_and_explained(name):
    entry = reader_catalog.READERS[name]
    assert issubclass(readers.REGISTRY.load(name), Reader)
    assert entry.source in form(["run"])["source"]["description"]
    assert set(entry.examples) <= set(form(["run"])["source"]["examples"])


def test_the_page_shows_the_table_of_the_catalog():
    assert reader_catalog.table() in (PROJECT / "docs" / "data.md").read_text()


def test_a_plain_path_goes_to_the_reader_of_its_kind_and_so_does_its_name(home, images):
    by_path = taken(ingest.run(spec_of(images)))
    for source in (f"table:{images}", f"file://{images}"):
        assert taken(ingest.run(spec_of(source)))["key"].tolist() == by_path["key"].tolist()
    assert len(list(open_source(f"folder:{images.parent}", DataSpec()).rows())) == len(by_path)


# Those of one's own ---------------------------------------------------------------------------------------------------


def test_a_reader_of_ones_own_is_named_by_module_and_class(home, squares):
    result = ingest.run(spec_of(f"{__name__}:Squares:20"))
    assert (result.rows, result.license) == (20, "of the test")
    assert set(taken(result)["label"]) == {"blue", "red"}


def test_a_reader_of_another_package_is_named_by_its_entry_point(home, squares, monkeypatch):
    entries = [
        EntryPoint("squares", f"{__name__}:Squares", "clipft.readers"),
        EntryPoint("no", f"{__name__}:NOT_A_READER", "clipft.readers"),
    ]
    monkeypatch.setattr(
        plugins, "entry_points", lambda group, name=None: [e for e in entries if e.group == group and name in (None, e.name)]
    )
    assert ingest.run(spec_of("squares:5")).rows == 5
    with refuses("plugin.wrong_kind", "reader 'no'", "clipft_tasks.data.readers.Reader"):
        open_source("no:5", DataSpec())


@pytest.mark.parametrize(
    ("source", "code", "named"),
    [
        (f"{__name__}:NOT_A_READER:5", "plugin.wrong_kind", ["NOT_A_READER"]),
        (f"{__name__}:Absent", "plugin.not_importable", ["Absent"]),
        ("no_such_module:Reader:x", "plugin.not_importable", ["no_such_module", "PYTHONPATH"]),
        ("elvp:mono", "source.unknown", ["elvp:mono", "`elpv:mono`"]),
        ("squares:5", "source.unknown", ["squares:5"]),
        ("~nobody-of-this-machine/images", "source.unknown", ["~nobody-of-this-machine/images"]),
        (f"/{'x' * 300}/images", "source.unknown", ["xxx"]),
        (r"C:\Users\Jörg\images", "source.unknown", [r"C:\Users\Jörg\images", "Windows"]),
        (r"\\server\share", "source.unknown", [r"\\server\share", "Windows"]),
        ("/nowhere/images", "source.unknown", ["/nowhere/images", platform.node()]),
    ],
)
def test_a_reader_that_cannot_be_had_is_refused_with_the_reason(home, source, code, named):
    with refuses(code, *named):
        open_source(source, DataSpec())


def test_of_a_file_that_no_reader_takes_the_folder_is_named_where_it_is_an_image(tmp_path):
    for name in ("one.png", "notes.docx"):
        (tmp_path / name).write_bytes(b"")
    with refuses("source.unknown", "one.png", "it is a file", f"the folder that it is in: {tmp_path}"):
        open_source(str(tmp_path / "one.png"), DataSpec())
    with refuses("source.unknown", "notes.docx", "it is a file", ".docx"):
        open_source(str(tmp_path / "notes.docx"), DataSpec())


def test_a_source_is_taken_as_desktops_copy_a_path():
    plain = "/data/Jörg's images"
    for copied in (f" {plain}\n", f'"{plain}"', f"'{plain}'", f' "{plain}" '):
        assert spec_of(copied).source == plain
    assert spec_of("'").source == "'" and spec_of(f"{plain}'").source == f"{plain}'"


def test_the_reader_of_the_page_reads(home, tmp_path, monkeypatch):
    page = (PROJECT / "docs" / "extending.md").read_text()
    code, source = re.search(
        r"cat > my_readers.py <<'PYTHON'\n(.*?)^PYTHON\n.*?--source (\S+)", page, re.MULTILINE | re.DOTALL
    ).groups()
    (tmp_path / "my_readers.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_readers", raising=False)
    result = ingest.run(spec_of(source))
    assert result.rows + result.rejected == 60 and result.rows > 50 and "CC-BY" in result.license
    with refuses("digits.invalid_number", "digits:many"):
        ingest.run(spec_of("my_readers:Digits:many"))

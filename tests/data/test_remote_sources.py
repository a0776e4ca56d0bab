"""Sources that lie elsewhere: only where settings allow, each file once, with the rows that the same files give here."""

import http.server
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import pandas as pd
import pytest
from fixtures import object_store
from fixtures.errors import refuses

from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import addresses, remote
from clipft_tasks.data.readers import open_source
from clipft_tasks.stages import ingest
from data.conftest import rejected, same_rows, spec_of, taken


class Web(http.server.SimpleHTTPRequestHandler):
    """Files of a folder with ETags, and what a hostile or failing server does."""

    root = Path()
    asked: list[str] = []
    fails: dict[str, int] = {}

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.answer(super().do_GET)

    def do_HEAD(self) -> None:
        self.answer(super().do_HEAD)

    def answer(self, usual) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.fails.get(self.path, 0) > 0:
            self.fails[self.path] -= 1
            self.send_error(503)
        else:
            usual()

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        super().end_headers()

    def translate_path(self, path: str) -> str:
        self.directory = str(self.root)
        return super().translate_path(path)

    def log_message(self, *about: object) -> None:
        pass


@pytest.fixture
def home(shared_home: Path, monkeypatch) -> Path:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    shutil.rmtree(shared_home / "cache" / "sources", ignore_errors=True)
    return shared_home


@pytest.fixture
def web(tmp_path, home):
    Web.root, Web.asked, Web.fails = tmp_path / "web", [], {}
    Web.root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def allow(monkeypatch):
    def allowed(*places: str) -> None:
        monkeypatch.setenv("CLIPFT_SOURCES_ALLOWED", " ".join(places))
        settings.cache_clear()

    return allowed


def test_a_table_of_the_web_gives_the_rows_that_it_gives_here_and_is_fetched_once(as_csv, images, web, allow):
    shutil.copytree(images.parent, Web.root / "my set")
    allow(f"{web}/my%20set")
    address = f"{web}/my%20set/{images.name}"
    pd.testing.assert_frame_equal(same_rows(taken(ingest.run(spec_of(address)))), same_rows(as_csv))
    first = len(Web.asked)
    assert first >= len(as_csv) + 1
    again = ingest.run(spec_of(address))
    assert len(Web.asked) == first and again.rows == len(as_csv)  # their tags are those of before
    with (Web.root / "my set" / images.name).open("a") as table:
        table.write("none.png,a red thing,red,,\n")
    assert list(rejected(ingest.run(spec_of(address)))) == ["none.png"] and len(Web.asked) == first + 2


def test_a_page_of_links_is_a_folder_and_nothing_beside_it_is_taken(as_csv, images, web, allow):
    for row in as_csv.itertuples():
        folder = Web.root / "set" / row.label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(images.parent / row.name, folder / row.name)
    shutil.copytree(images.parent, Web.root / "secret")
    one = next((Web.root / "set").iterdir())
    (one / "index.html").write_text(
        "".join(f'<a href="{quote(p.name)}">x</a>' for p in one.iterdir())
        + '<a href="/secret/red-0.png">s</a><a href="../../secret/">s</a><a href="?C=N">s</a>'
    )
    allow(f"{web}/set")
    found = taken(ingest.run(spec_of(f"{web}/set/")))
    assert found["label"].value_counts().to_dict() == as_csv["label"].value_counts().to_dict()
    assert not any("secret" in path for path in Web.asked)


def test_what_fails_for_a_moment_is_tried_again_and_what_fails_for_good_ends_the_task(images, web, allow):
    shutil.copytree(images.parent, Web.root / "set")
    allow(web)
    first = next(iter(pd.read_csv(images)["image"]))
    Web.fails = {f"/set/{first}": 4}  # twice as the store asks, once as it fetches
    assert ingest.run(spec_of(f"{web}/set/{images.name}")).rejected == 0
    shutil.rmtree(settings().root / "cache" / "sources")
    Web.fails = {f"/set/{first}": 1000}
    with pytest.raises(TransientError, match="503"):
        ingest.run(spec_of(f"{web}/set/{images.name}"))
    Web.fails = {}
    asked = len(Web.asked)
    ingest.run(spec_of(f"{web}/set/{images.name}"))
    assert len(Web.asked) - asked <= 2  # the rest was there


def test_a_table_here_may_name_images_elsewhere_where_that_is_allowed(images, web, allow, home):
    shutil.copytree(images.parent, Web.root / "set")
    rows = pd.read_csv(images, dtype=str, keep_default_na=False)
    rows["image"] = [f"{web}/set/{name}?size=1&token=s3cret" for name in rows["image"]]
    rows.loc[0, "image"] = f"{web}/gone.png?token=s3cret"
    rows.loc[1, "image"] = "https://elsewhere.example/1.png?token=s3cret"
    rows.to_csv(images, index=False)
    allow(web)
    made = ingest.run(spec_of(images))
    assert made.rows == len(rows) - 2
    said = {row["reason"] for row in rejected(made).values()}
    assert any("there is no such file" in why for why in said) and any("CLIPFT_SOURCES_ALLOWED" in why for why in said)
    everything = b"".join(p.read_bytes() for p in Path(made.staging).rglob("*") if p.is_file())
    assert b"s3cret" not in everything


def test_the_images_of_a_table_here_may_lie_below_an_address(as_csv, images, web, allow):
    shutil.copytree(images.parent, Web.root / "set")
    table = images.parent.with_name("alone") / "table.csv"
    table.parent.mkdir()
    shutil.copy(images, table)
    with refuses("source.not_allowed", f"{web}/set"):
        ingest.run(spec_of(table, **{"data.images_root": f"{web}/set"}))
    allow(f"{web}/set")
    made = ingest.run(spec_of(table, **{"data.images_root": f"{web}/set"}))
    pd.testing.assert_frame_equal(same_rows(taken(made)), same_rows(as_csv))


@pytest.mark.parametrize(
    ("allowed", "source"),
    [
        ("", "https://example.org/a.csv"),
        ("https://example.org/open", "https://example.org/closed/a.csv"),
        ("https://example.org/open", "https://example.org/open/../closed/a.csv"),
        ("https://example.org/open", "https://example.org/open/%2e%2e/closed/a.csv"),
        ("https://example.org/open", "https://example.org/opener/a.csv"),
        ("https://example.org", "http://example.org/a.csv"),
        ("https://example.org", "https://example.org:8443/a.csv"),
        ("https://example.org", "https://example.org@127.0.0.1/a.csv"),
        ("https://example.org", "https://me:word@example.org/a.csv"),
        ("https://example.org", "https://example.org/a.csv?X-Amz-Signature=12"),
        ("https://*", "https://169.254.169.254/latest/meta-data/"),
        ("http://*", "http://127.0.0.1:80/a.csv"),
        ("http://*", "http://[::1]:80/a.csv"),
        ("http://*", "http://0x7f.1/a.csv"),
        ("http://*", "http://localhost/a.csv"),
        ("https://host:nine", "https://host:99999/a.csv"),
        ("s3://mine", "s3://yours/a.csv"),
        ("s3://mine/a", "s3://mine/ab/c.csv"),
        ("ftp://host", "ftp://host/a.csv"),
        ("memory://", "simplecache::memory://a/b.csv"),
        ("file://", "zip://x::file:///etc/passwd"),
    ],
)
def test_no_place_is_asked_that_settings_do_not_allow(home, allow, allowed, source):
    allow(allowed)
    with pytest.raises(ClipftError) as caught:
        open_source(source, spec_of("x").data)
    assert caught.value.code in ("source.not_allowed", "source.unknown") and ":word" not in str(caught.value)
    assert caught.value.code == "source.unknown" or "CLIPFT_SOURCES_ALLOWED" in str(caught.value)


@pytest.mark.parametrize("number", ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1", "fd00:ec2::254"])
def test_a_name_of_this_machine_or_its_network_is_refused_unless_it_was_meant(home, allow, number):
    allow("https://*.example.org")
    with refuses("source.not_allowed", "images.example.org"):
        addresses.check_number("images.example.org", number)
    allow("http://[::1]:1")
    assert addresses.check("http://[::1]:1/a.csv") == "http://[::1]:1/a.csv"
    allow("https://images.example.org")  # an archive in the house has a private number
    if number == "10.0.0.1":
        addresses.check_number("images.example.org", number)
    else:
        with refuses("source.not_allowed"):
            addresses.check_number("images.example.org", number)


def test_a_redirect_to_a_place_that_is_not_allowed_is_not_followed(images, web, allow):
    shutil.copytree(images.parent, Web.root / "set")
    (Web.root / "other").mkdir()
    allow(f"{web}/set", f"{web}/to")
    assert open_source(f"{web}/to//set/{images.name}", spec_of("x").data).name == images.name
    shutil.copy(images, Web.root / "other" / images.name)
    with refuses("source.not_allowed", "/other/"):
        open_source(f"{web}/to//other/{images.name}", spec_of("x").data)
    assert not any(path.startswith("/other/") for path in Web.asked)


def test_a_folder_of_any_store_is_read_and_follows_what_the_store_holds(as_csv, images, home, allow):
    import fsspec

    store = fsspec.filesystem("memory")
    for row in as_csv.itertuples():
        store.pipe(f"/lab/set/{row.label}/{row.name}", (images.parent / row.name).read_bytes())
    store.pipe("/lab/set/a/../b.png", b"x")
    allow("memory://lab")
    try:
        made = ingest.run(spec_of("memory://lab/set"))
        assert taken(made)["label"].value_counts().to_dict() == as_csv["label"].value_counts().to_dict()
        store.rm(f"/lab/set/{as_csv['label'][0]}/{as_csv['name'][0]}")
        assert ingest.run(spec_of("memory://lab/set")).rows == len(as_csv) - 1
        with refuses("source.not_found", "memory://lab/none"):
            ingest.run(spec_of("memory://lab/none/"))
    finally:
        store.rm("/lab", recursive=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="SeaweedFS is installed on Linux only")
def test_objects_of_s3_are_a_source_of_every_reader_of_files(as_csv, images, home, allow, monkeypatch, tmp_path):
    shutil.copytree(images.parent, tmp_path / "all" / "set")
    (tmp_path / "all" / "set" / images.name).rename(tmp_path / "all" / "set" / "metadata.csv")
    archive = Path(shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "all"))
    with object_store.object_store(tmp_path / "store") as address:
        for name, value in object_store.environment(address).items():
            monkeypatch.setenv(name, value)
        there = object_store.client(address)
        there.create_bucket(Bucket="lab")
        for path in [*images.parent.iterdir()]:
            there.put_object(Bucket="lab", Key=f"set/{path.name}", Body=path.read_bytes())
        there.put_object(Bucket="lab", Key="all.zip", Body=archive.read_bytes())
        for row in as_csv.itertuples():
            there.put_object(Bucket="lab", Key=f"tree/{row.label}/{row.name}", Body=(images.parent / row.name).read_bytes())
        allow("s3://lab")
        pd.testing.assert_frame_equal(same_rows(taken(ingest.run(spec_of(f"s3://lab/set/{images.name}")))), same_rows(as_csv))
        tree = ingest.run(spec_of("s3://lab/tree"))
        assert tree.rows == len(as_csv) and set(taken(tree)["sha256"]) == set(as_csv["sha256"])
        assert ingest.run(spec_of("s3://lab/all.zip")).rows == len(as_csv)

"""Data sets without a shared disk: git and DVC over plain HTTP with a name and a secret, into a bounded cache."""

import base64
import http.server
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import write_images
from fixtures.errors import refuses

from clipft_tasks.core.errors import TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import ingest, version

WHO = ("desk", "its-secret")


class Gateway(http.server.SimpleHTTPRequestHandler):
    """The repository's .git and the remote's objects, to whoever knows the secret; notes what was asked."""

    roots: dict[str, Path] = {}
    asked: list[str] = []

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        expected = base64.b64encode(":".join(WHO).encode()).decode()
        if self.headers.get("Authorization") != f"Basic {expected}":
            self.send_error(401)
            return False
        self.asked.append(self.path)
        return True

    def translate_path(self, path: str) -> str:
        name, _, rest = urlsplit(path).path.lstrip("/").partition("/")
        return str(self.roots.get(name, Path("/nowhere")) / rest)

    def log_message(self, *about: object) -> None:
        pass


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    """A control plane's home with one version of the domain `general`."""
    home = tmp_path_factory.mktemp("control") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_HOME", str(home))
        settings.cache_clear()
        spec = RunSpec.from_flat({"domain": "general", "source": str(write_images(home.parent / "s"))})
        version.run(spec, ingest.run(spec).staging)
    settings.cache_clear()
    subprocess.run(["git", "update-server-info"], cwd=home / "datasets", check=True)
    return home.rename(home.with_name("moved"))  # whatever is read from now on comes over HTTP


@pytest.fixture
def address(plane, home):
    Gateway.roots = {"datasets.git": plane / "datasets" / ".git", "objects": plane / "dvc-remote"}
    Gateway.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def become_worker(monkeypatch, home: Path, address: str, **more: object) -> None:
    values = {
        "HOME": home, "DATA_REPO": f"{address}/datasets.git", "DVC_REMOTE": f"{address}/objects",
        "WORKER_NAME": WHO[0], "WORKER_SECRET": WHO[1],
    } | more  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"CLIPFT_{name}", str(value))
    settings.cache_clear()


def test_a_worker_reads_versions_and_images_over_http_alone(address, tmp_path, monkeypatch):
    become_worker(monkeypatch, tmp_path / "worker", address)
    found = versioning.find("", "general")
    dataset = versioning.fetch(found)
    assert found.tag == "general/v1" and len(dataset.frame) == 80
    assert all(dataset.image_bytes(row)[:4] == b"\x89PNG" for row in dataset.frame.itertuples())
    assert any(path.startswith("/objects/") for path in Gateway.asked)

    objects = [p for p in Gateway.asked if p.startswith("/objects/")]
    versioning.fetch(found)
    assert [p for p in Gateway.asked if p.startswith("/objects/")] == objects  # the second time nothing is fetched


def test_a_worker_never_tries_to_write(address, tmp_path, monkeypatch):
    staging = tmp_path / "staging"
    become_worker(monkeypatch, tmp_path / "worker", address)
    with refuses("dataset.read_only", "general"):
        versioning.commit("general", staging, {"content": "new"})
    empty = tmp_path / "empty"
    subprocess.run(["git", "init", "--quiet", "--bare", str(empty)], check=True)
    subprocess.run(["git", "update-server-info"], cwd=empty, check=True)
    Gateway.roots["datasets.git"] = empty
    with refuses("dataset.no_repository", "datasets.git"):
        versioning.find("", "general")


def test_a_wrong_secret_is_not_tried_again_and_a_missing_gateway_is(address, tmp_path, monkeypatch):
    become_worker(monkeypatch, tmp_path / "worker", address, WORKER_SECRET="wrong")
    with refuses("dataset.repository_failed", "git clone"):
        versioning.find("", "general")
    become_worker(monkeypatch, tmp_path / "other", "http://127.0.0.1:1")
    with pytest.raises(TransientError):
        versioning.find("", "general")


def test_the_secret_stands_in_no_file(address, tmp_path, monkeypatch):
    become_worker(monkeypatch, tmp_path / "worker", address)
    versioning.fetch(versioning.find("", "general"))
    shown = {WHO[1].encode(), base64.b64encode(":".join(WHO).encode())}
    for path in (tmp_path / "worker").rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in shown), path


def test_shards_that_were_needed_longest_ago_give_way(address, tmp_path, monkeypatch):
    become_worker(monkeypatch, tmp_path / "worker", address, SHARDS_GB=1e-6)
    folder = versioning.fetch(versioning.find("", "general")).folder
    now = {p.name for p in folder.iterdir()}
    old = folder / ("0" * 32 + ".tar")
    shutil.copyfile(folder / sorted(now)[0], old)
    assert versioning.shards.NAME.match(old.name)
    versioning.fetch(versioning.find("", "general"))
    assert {p.name for p in folder.iterdir()} == now  # what is needed stays, though it is more than allowed

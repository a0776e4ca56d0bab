"""Search over one's own images: an index for each version, and a server that mixes none of them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import COLORS, made_image, write_images
from fixtures.errors import refuses
from fixtures.live_server import IMAGES, TEXTS, Server, png, trained, use

pytest.importorskip("usearch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of two classes, and one file that is none."""
    made = tmp_path_factory.mktemp("own images")
    for label in COLORS:
        (made / label).mkdir()
        for n in range(10):
            (made / label / f"{n}.png").write_bytes(png(made_image(label, 500 + n)))
    (made / "red" / "broken.png").write_bytes(b"no image")
    return made


@pytest.fixture
def built(server: Server, folder: Path) -> Server:
    """A server with an index of version 1 of that folder, and none of version 2."""
    import shutil

    from clipft_tasks import search
    from clipft_tasks.search.index import folder_of

    if {card.version for card in search.cards()} != {"1"}:
        shutil.rmtree(folder_of(), ignore_errors=True)
        search.build("general", str(folder), "1")
    return server


def ask(server: Server, **body: object) -> list[dict]:
    answer = server.post("/v1/search", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["hits"]


def test_a_folder_is_indexed_from_the_command_line(server, folder):
    from clipft_tasks.cli.main import main

    done = CliRunner().invoke(main, ["index", "build", "general", "--source", str(folder), "--version", "1"])
    assert done.exit_code == 0 and "20 images of" in done.output and "1 that cannot be read" in done.output, done.output
    assert "version 1          20 images" in CliRunner().invoke(main, ["index", "list"]).output


def test_an_image_finds_itself_and_a_text_ranks_as_the_model_does(built, folder, plain):
    own = folder / "blue" / "3.png"
    [first, *_] = ask(built, image={"base64": __import__("base64").b64encode(own.read_bytes()).decode()}, limit=3)
    assert first["score"] > 0.999 and first["label"] == "blue" and first["id"].endswith("3.png")
    files = sorted(folder.glob("*/[0-9].png"))
    scores = (plain["1"].images([f.read_bytes() for f in files]) @ plain["1"].texts(TEXTS[:1]).T)[:, 0]
    hits = ask(built, text=TEXTS[0], limit=20)
    assert np.allclose([hit["score"] for hit in hits], sorted(scores, reverse=True), atol=1e-3)


def test_hits_can_be_of_certain_labels_only(built):
    everything = ask(built, text=TEXTS[0], limit=20)
    hits = ask(built, text=TEXTS[0], labels=["red"], limit=20)
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in everything if hit["label"] == "red"] and len(hits) == 10
    assert ask(built, text="x", labels=["green"]) == []


@pytest.mark.parametrize(
    "body", [{}, {"text": "x", "image": IMAGES[0]}, {"text": ""}, {"text": "x", "limit": 0}, {"text": "x", "limit": 101}]
)
def test_a_query_is_a_text_or_an_image(server, body):
    assert server.post("/v1/search", body).status_code == 422


def test_embeddings_of_two_versions_are_never_compared(built):
    from clipft_tasks import search

    assert built.put("2").status_code == 200
    refused = built.post("/v1/search", {"text": "x"})
    told = refused.json()
    assert (refused.status_code, told["code"]) == (409, "search.other_space")
    assert "version 1" in told["detail"] and "version 2" in told["detail"]
    search.refresh("general", "2")  # from the same source, beside the other
    assert len(ask(built, text="x", limit=30)) == 20
    assert built.put("1").status_code == 200  # and back, at once
    assert len(ask(built, text="x", limit=30)) == 20
    assert {card.version for card in search.cards("general")} == {"1", "2"}
    assert search.refresh("general", "2").card.rows == 20 and search.refresh("medical") is None


def test_a_row_that_is_forgotten_is_in_no_index_any_more(built, folder):
    from clipft_tasks import search
    from clipft_tasks.search.index import ROWS, folder_of

    name = ask(built, text="x", limit=1)[0]["id"]
    removed = search.forget([name, "never there"])
    assert removed == len(search.cards("general"))
    built.until(lambda: name not in {hit["id"] for hit in ask(built, text="x", limit=30)}, 10)
    assert len(ask(built, text="x", limit=30)) == 19
    for card in search.cards("general"):
        assert card.rows == 19
        assert name.encode() not in (folder_of("general", card.version) / ROWS).read_bytes()
    assert search.forget([name]) == 0


def test_the_newest_dataset_version_is_indexed_for_the_champion(base, own):
    from clipft_tasks import search
    from clipft_tasks.core.settings import settings

    with pytest.MonkeyPatch.context() as patch:
        use(trained(base), patch)
        made = search.build("general")
        assert (made.card.source, made.card.version) == ("general/v1", "1") and made.card.rows > 50
    settings.cache_clear()


def test_without_an_index_the_way_to_one_is_said(server, monkeypatch, tmp_path):
    from clipft_tasks import search
    from clipft_tasks.core.settings import settings

    monkeypatch.setenv("CLIPFT_HOME", str(tmp_path))
    settings.cache_clear()
    try:
        with refuses("search.no_index", "general", "clipft index build"):
            search.opened("general", "1")
        with refuses("search.no_champion"):
            search.build("general", str(write_images(tmp_path / "images", 2).parent))
        assert search.forget(["x"]) == 0 and search.refresh("general") is None
    finally:
        monkeypatch.undo()
        settings.cache_clear()

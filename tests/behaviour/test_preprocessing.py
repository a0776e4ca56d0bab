"""A packaged model reads images and words classes by its package, whoever opens it and whatever the domain's file says by now:
the server, `mlflow.pyfunc` and an evaluation see the same."""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from fixtures.live_server import CLASSES, EMBED_IMAGES, TOKEN, b64, close, package
from fixtures.packages import as_before
from PIL import Image

from clipft_tasks import domains, tracking
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning
from clipft_tasks.evaluate import zero_shot
from clipft_tasks.model import build
from clipft_tasks.model.clip import Clip

pytestmark = pytest.mark.slow

EDITED = """
from clipft_tasks.domains import Domain
DOMAIN = Domain("general", "General", prompts=("nothing like {}, on the contrary.",), caption="a {}.", gray_bits=0)
"""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def deep(top: int) -> bytes:
    ramp = np.linspace(0, top, 48 * 48).astype(np.uint16).reshape(48, 48)
    return encoded(Image.fromarray(np.roll(ramp, 13, axis=0)), "PNG")


def rotated() -> bytes:
    half = Image.new("RGB", (64, 40), "red")
    half.paste("blue", (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return encoded(half, "JPEG", quality=95, exif=exif)


FILES = {"12 of 16 bits": deep(4095), "16 bits": deep(65535), "rotated": rotated()}


@pytest.fixture
def edited(own: Path, tmp_path: Path):
    """A context in which this process reads another file of the domain `general` than the one of the training."""
    (tmp_path / "edited.py").write_text(EDITED)

    def read_anew() -> None:
        settings.cache_clear()
        domains._all.cache_clear()

    @contextmanager
    def edit() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLIPFT_DOMAINS_PATH", str(tmp_path / "edited.py"))
            read_anew()
            assert domains.get_domain("general").gray_bits == 0
            yield
        read_anew()

    yield edit
    read_anew()


@pytest.fixture
def asked(own: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls open a server in this process, which loads the champion anew, and give its embeddings and class scores."""
    from fastapi.testclient import TestClient

    from serving.inference.app import create_app
    from serving.inference.settings import ServingSettings

    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)

    def ask(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        settings.cache_clear()
        with TestClient(create_app(ServingSettings(device="cpu", poll_seconds=0))) as client:
            body = {"images": [b64(f) for f in files]}
            put = client.put("/v1/models/general", json={"version": "1"}, headers={"Authorization": f"Bearer {TOKEN}"})
            assert put.status_code == 200, put.text
            embedded, classified = (client.post(path, json=body) for path in (EMBED_IMAGES, CLASSES))
            scores = [list(p["scores"].values()) for p in classified.json()["predictions"]]
            return np.array(embedded.json()["embeddings"]), np.array(scores)

    yield ask
    settings.cache_clear()


def by_pyfunc(files: list[bytes]) -> list[list[float]]:
    tracking.client()  # MLflow asks this home's registry, whichever was asked before
    model = mlflow.pyfunc.load_model("models:/clipft-general/1")
    return model.predict(pd.DataFrame({"image": [b64(f)["base64"] for f in files]}))["image_embedding"].tolist()


@pytest.mark.parametrize("kind", FILES)
def test_the_mlflow_model_sees_the_image_that_the_server_sees(asked, kind):
    assert close(by_pyfunc([FILES[kind]]), asked([FILES[kind]])[0])


def test_deep_gray_is_not_white_and_a_rotated_image_is_not_upright(asked):
    """What the two must not agree on: the readings that were wrong."""
    white, upright = encoded(Image.new("L", (48, 48), 255), "PNG"), Image.open(io.BytesIO(rotated()))
    upright = encoded(upright.copy(), "PNG")  # without the tag
    wrong, right = by_pyfunc([white, upright]), by_pyfunc([FILES["12 of 16 bits"], rotated()])
    assert np.abs(np.array(wrong) - right).max(axis=1).min() > 1e-3


def test_an_edited_domain_changes_neither_the_server_nor_the_mlflow_model(asked, edited):
    files = list(FILES.values())
    served, scores = asked(files)
    assert close(by_pyfunc(files), served)
    with edited():
        again, scores_again = asked(files)
        assert close(again, served) and close(scores_again, scores) and close(by_pyfunc(files), served)


def test_an_edited_domain_changes_no_evaluation_of_a_packaged_model(base, edited, monkeypatch):
    monkeypatch.setenv("CLIPFT_DATA_REPO", str(base / "home" / "datasets"))
    monkeypatch.setenv("CLIPFT_DVC_REMOTE", str(base / "home" / "dvc-remote"))

    def scores(clip: Clip) -> np.ndarray:
        settings.cache_clear()
        dataset = versioning.fetch(versioning.find("", "general"))
        return zero_shot.predict(clip, zero_shot.Task(dataset, 32, 16)).scores

    trained = scores(build.from_folder(package("1"), source="version 1"))
    start = scores(build.load(str(base / "tiny"), domain="general"))
    with edited():
        assert np.array_equal(scores(build.from_folder(package("1"), source="version 1")), trained)
        assert np.abs(scores(build.load(str(base / "tiny"), domain="general")) - start).max() > 1e-4


def test_a_package_of_the_release_before_is_served_with_its_domains_preprocessing(asked, own, edited, capsys, tmp_path):
    expected, scores = asked(list(FILES.values()))
    folder = package("1")
    shutil.copytree(folder, tmp_path / "kept")
    try:
        as_before(folder)
        capsys.readouterr()
        embedded, again = asked(list(FILES.values()))
        assert "did not pack its preprocessing" in capsys.readouterr().out
        assert close(embedded, expected) and close(again, scores)
        with edited():  # nothing else says how
            assert not close(asked(list(FILES.values()))[0], expected)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)

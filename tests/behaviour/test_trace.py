"""From an answer of a real server to the images behind it, in one command; and the card that a registered version shows."""

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixtures.live_server import CLASSES, FILES, TOKEN, b64
from huggingface_hub import ModelCard

from clipft_tasks import tracking
from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings
from clipft_tasks.data import versioning

pytestmark = pytest.mark.slow


def traced(*asked: str) -> str:
    done = CliRunner().invoke(main, ["trace", *asked])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def asking(server, base, monkeypatch):
    """This process asks the module's server, as an operator, and knows the data that its versions were trained on."""
    monkeypatch.setenv("CLIPFT_DATA_REPO", str(base / "home" / "datasets"))
    monkeypatch.setenv("CLIPFT_DVC_REMOTE", str(base / "home" / "dvc-remote"))
    monkeypatch.setenv("CLIPFT_SERVER_URL", str(server.client.base_url))
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
    settings.cache_clear()
    return server


def test_an_answer_leads_to_each_image_that_its_version_was_trained_on(asking, tmp_path):
    answer = asking.client.post(CLASSES, json={"images": [b64(FILES[0])]})
    said = traced(answer.headers["x-clipft-answer-id"], "--images", str(tmp_path / "images.csv"))
    rows = versioning.read_manifest(versioning.find("", "general"))
    looked_at = rows[rows["split"] != "test"]
    version = tracking.resolve_version("models:/clipft-general/1")
    assert said.startswith("clipft-general version 1\n") and str(version.run_id) in said
    assert f"{looked_at['sha256'].nunique()} images" in said
    with (tmp_path / "images.csv").open() as file:
        found = list(csv.DictReader(file))
    assert {row["key"] for row in found} == set(looked_at["key"])
    assert {(row["dataset"], row["split"]) for row in found} == {("general/v1", "train"), ("general/v1", "val")}


def test_a_version_is_named_in_every_way_that_people_write_it(asking):
    for asked in ("general", "general@champion", "general/1", "models:/clipft-general/1", "models:/clipft-general@champion"):
        assert traced(asked).startswith("clipft-general version 1\n"), asked


def test_a_model_that_was_trained_from_another_has_the_others_images_behind_it_too(asking):
    client = tracking.client()
    before = client.get_model_version("clipft-general", "2").tags["clipft.start"]
    client.set_model_version_tag("clipft-general", "2", "clipft.start", "models:/clipft-general/1")
    try:
        said = traced("general/2")
        assert "It was trained from clipft-general version 1" in said and said.count("MLflow run") == 2
    finally:
        client.set_model_version_tag("clipft-general", "2", "clipft.start", before)


def test_what_nobody_remembers_is_refused(asking):
    done = CliRunner().invoke(main, ["trace", "nobodys-answer"])
    assert done.exit_code == 1 and "[trace.not_found]" in done.output
    done = CliRunner().invoke(main, ["trace", "general/99"])
    assert done.exit_code == 1 and "[model.not_registered]" in done.output


def test_a_registered_version_says_how_to_ask_it_and_has_a_card_of_the_hub(own: Path, tmp_path):
    version = tracking.resolve_version("models:/clipft-general/2")
    assert "/v1/classify -F domain=general" in version.description and 'Client("' in version.description
    found = tracking.client().download_artifacts(str(version.run_id), "README.md", str(tmp_path))
    card = ModelCard.load(found)
    [result] = card.data.eval_results
    assert (result.dataset_name, result.metric_type) == ("general/v1", "balanced_accuracy")
    assert result.metric_value == pytest.approx(float(version.tags["clipft.score.32"]))
    package = ModelCard.load(tracking.fetch_package(version) / "README.md")
    assert package.data.eval_results is None and package.data.library_name == "open_clip"

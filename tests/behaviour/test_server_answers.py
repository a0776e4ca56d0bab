"""What the server answers, beside the plain model; and what it says of itself."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import made_image
from fixtures.live_server import FILES, IMAGES, TEXTS, TOKEN, Plain, Server, b64, changed_card, close, package, png
from PIL import Image
from safetensors.torch import save_file

from clipft_tasks import tracking
from clipft_tasks.data.images import square
from clipft_tasks.drift import model_search
from clipft_tasks.model import recorded_answers
from clipft_tasks.model import similarity as similarities
from clipft_tasks.model.package import CLASSES, RECORDED_ANSWERS, read_calibration

pytestmark = pytest.mark.slow


# Answers ------------------------------------------------------------------------------------------------------------


def test_the_two_versions_answer_differently(plain):
    assert np.abs(plain["1"].images() - plain["2"].images()).max() > 0.01
    assert np.abs(plain["1"].texts() - plain["2"].texts()).max() > 0.01


@pytest.mark.parametrize("domain", [{}, {"domain": "general"}], ids=["without a domain", "with the domain"])
def test_embeddings_are_those_of_the_plain_model(server, plain, domain):
    many = server.post("/v1/embed/images", {"images": IMAGES, **domain}).json()
    assert close(many["embeddings"], plain["1"].images()) and many["dimension"] == 32
    one = server.post("/v1/embed/images", {"images": IMAGES[0], **domain}).json()
    assert close(one["embeddings"], plain["1"].images()[:1])
    texts = server.post("/v1/embed/texts", {"texts": TEXTS, **domain}).json()
    assert close(texts["embeddings"], plain["1"].texts())
    assert close(server.post("/v1/embed/texts", {"texts": TEXTS[2], **domain}).json()["embeddings"], plain["1"].texts()[2:])


LENGTHS = [16, 8]


@pytest.fixture
def elastic(server: Server) -> Iterator[Server]:
    """Version 2 is live, and its card says that it was trained for shorter embeddings too."""
    with changed_card(package("2"), lambda card: card.update(dimensions=LENGTHS)):
        assert server.put("2").status_code == 200
    yield server
    server.put("1")


def short(embeddings: np.ndarray, length: int) -> np.ndarray:
    return embeddings[:, :length] / np.linalg.norm(embeddings[:, :length], axis=1, keepdims=True)


@pytest.mark.parametrize("length", LENGTHS)
def test_an_embedding_may_be_cut_to_a_length_that_the_model_was_trained_for(elastic, plain, length):
    asked: dict[str, Any] = {"dimensions": length}
    images = elastic.post("/v1/embed/images", {"images": IMAGES, **asked}).json()
    assert close(images["embeddings"], short(plain["2"].images(), length)) and images["dimension"] == length
    texts = elastic.post("/v1/embed/texts", {"texts": TEXTS, **asked}).json()
    assert close(texts["embeddings"], short(plain["2"].texts(), length)) and texts["dimension"] == length
    form = elastic.client.post("/v1/embed/texts", files=[("text", (None, TEXTS[0])), ("dimensions", (None, str(length)))])
    assert close(form.json()["embeddings"], short(plain["2"].texts(), length)[:1])
    whole = elastic.post("/v1/embed/images", {"images": IMAGES}).json()
    assert close(whole["embeddings"], plain["2"].images()) and whole["dimension"] == 32


def test_what_is_cut_for_the_caller_is_whole_in_the_window(elastic):
    before = elastic.get_with_token("/v1/drift/general").json()
    elastic.post("/v1/embed/images", {"images": IMAGES * 10, "dimensions": 8})
    elastic.post("/v1/embed/images", {"images": IMAGES * 10})
    after = elastic.get_with_token("/v1/drift/general").json()
    assert after["images"] == before["images"] + 20 * len(IMAGES) and "image" in after["drift"]


def test_the_lengths_that_are_allowed_are_told(elastic):
    [model] = elastic.get("/v1/models").json()["data"]
    assert (model["version"], model["dimensions"]) == ("2", [8, 16])
    for length in (7, 31, 64):
        for path, body in (("/v1/embed/images", {"images": IMAGES}), ("/v1/embed/texts", {"texts": TEXTS})):
            refused = elastic.post(path, {**body, "dimensions": length})
            assert refused.status_code == 422 and "8, 16" in refused.json()["detail"], refused.text
    for wrong in (0, -8, 8.5, "many", [8]):
        assert elastic.post("/v1/embed/texts", {"texts": TEXTS, "dimensions": wrong}).status_code == 422
    assert elastic.post("/v1/similarity", {"images": IMAGES, "texts": TEXTS, "dimensions": 8}).status_code == 422


def test_a_model_that_was_trained_for_one_length_has_only_that(server):
    assert server.get("/v1/models").json()["data"][0]["dimensions"] == []
    refused = server.post("/v1/embed/texts", {"texts": TEXTS, "dimensions": 8})
    assert refused.status_code == 422 and "no other length" in refused.json()["detail"]


@pytest.fixture(params=["euclidean", "hyperbolic", "bilinear"])
def warped(request: pytest.FixtureRequest, server: Server, plain: dict[str, Plain], tmp_path: Path) -> Iterator[Server]:
    """Version 2 is live and compares otherwise than by the cosine; `plain["2"]` with it."""
    folder, clip = package("2"), plain["2"].clip
    shutil.copytree(folder, tmp_path / "kept")
    cosine = clip.similarity
    clip.similarity = similarities.make(request.param, clip.embed_dim)
    clip.similarity.begin(torch.from_numpy(plain["2"].images()) * 3, torch.from_numpy(plain["2"].texts()) * 2)
    for weights in clip.similarity.parameters():
        weights.data += 0.1  # as training would have moved them
    try:
        save_file({k: v.contiguous() for k, v in clip.similarity.state_dict().items()}, folder / "similarity.safetensors")
        squares = np.stack([square(clip.open_image(f).rgb, 32) for f in FILES])
        (folder / RECORDED_ANSWERS).write_text(json.dumps(recorded_answers.record(clip, squares, TEXTS).to_json()))
        card = json.loads((folder / "card.json").read_text())
        (folder / "card.json").write_text(json.dumps(card | {"similarity": request.param, "dimensions": [8]}))
        done = server.put("2")
        assert done.status_code == 200, done.text
        yield server
    finally:
        clip.similarity = cosine
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        server.put("1")


def test_a_model_answers_by_its_own_similarity(warped, plain):
    model, compare = plain["2"], plain["2"].clip.similarity.compare
    classes = model.card.classes
    expected, scores = compare(model.images(), model.texts()), compare(model.images(), model.classes(classes))
    assert np.abs(expected - model.images() @ model.texts().T).max() > 0.01  # it is not the cosine
    assert close(warped.post("/v1/embed/images", {"images": IMAGES}).json()["embeddings"], model.images())
    assert close(warped.post("/v1/similarity", {"images": IMAGES, "texts": TEXTS}).json()["similarity"], expected)
    given = warped.post("/v1/classify", {"images": IMAGES}).json()["predictions"]
    assert close([[p["scores"][n] for n in classes] for p in given], scores)
    assert [p["label"] for p in given] == [classes[i] for i in scores.argmax(1)]
    rows = warped.client.get("/v1/windows/general", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert close(rows["similarity"][-len(FILES) :], scores)
    short = model.clip.similarity.prefix(torch.from_numpy(model.images()), 8).numpy()
    assert close(warped.post("/v1/embed/images", {"images": IMAGES, "dimensions": 8}).json()["embeddings"], short)
    [told] = warped.get("/v1/models").json()["data"]
    assert told["similarity"] == model.clip.similarity.name != "cosine"


def test_similarity_is_the_cosine_of_every_image_with_every_text(server, plain):
    expected = plain["1"].images() @ plain["1"].texts().T
    assert close(server.post("/v1/similarity", {"images": IMAGES, "texts": TEXTS}).json()["similarity"], expected)
    alone = server.post("/v1/similarity", {"images": IMAGES[1], "texts": TEXTS[0]}).json()["similarity"]
    assert close(alone, expected[1:2, :1])


@pytest.mark.parametrize("classes", [None, ["red square", "green circle", "blue square"]], ids=["own classes", "asked classes"])
def test_classify_ranks_the_classes_over_the_domains_prompts(server, plain, classes):
    body = {"images": IMAGES} | ({"classes": classes} if classes else {})
    given = server.post("/v1/classify", body).json()["predictions"]
    names = classes or ["blue square", "red square"]
    cosines = plain["1"].images() @ plain["1"].classes(names).T
    calibration = read_calibration(package("1"))
    scale = float(plain["1"].clip.model.logit_scale.detach().exp()) if classes else 1 / calibration.temperature
    odds = np.exp(cosines * scale) / np.exp(cosines * scale).sum(1, keepdims=True)
    assert close([[p["scores"][n] for n in names] for p in given], cosines)
    assert [p["label"] for p in given] == [names[i] for i in cosines.argmax(1)]
    assert close([p["probability"] for p in given], odds.max(1))
    assert [p["label"] for p in given] == ["red square", "blue square"] * 2


def test_classes_fitted_to_images_answer_for_themselves_also_among_others(server, plain):
    """They stand in for what the prompts say wherever they are named; any other class is worded by the prompts."""
    own = plain["2"].card.classes
    rows = np.random.default_rng(0).normal(size=(len(own), 32)).astype(np.float32)
    fitted = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    place = package("2") / CLASSES
    save_file({"embeddings": fitted}, place)
    try:
        assert server.put("2").status_code == 200
        for classes in (None, [own[1], "a purple star", own[0]]):
            asked = {} if classes is None else {"classes": classes}
            answer = server.post("/v1/classify", {"images": IMAGES, **asked}).json()["predictions"]
            texts = dict(zip(own, fitted.numpy(), strict=True))
            texts["a purple star"] = plain["2"].classes(["a purple star"])[0]
            names = classes or own
            expected = plain["2"].images() @ np.stack([texts[name] for name in names]).T
            assert close([[p["scores"][name] for name in names] for p in answer], expected)
    finally:
        place.unlink()
        server.put("1")


def test_a_heatmap_says_where_the_model_looked_and_changes_nothing_of_the_answer(server, plain):
    def rows() -> int:
        return server.get_with_token("/v1/drift/general").json()["images"]

    before = rows()
    given = server.post("/v1/classify", {"images": IMAGES}).json()["predictions"]
    plainly = rows() - before
    explained = server.post("/v1/classify", {"images": IMAGES, "explain": True}).json()["predictions"]
    assert rows() - before == 2 * plainly  # a heatmap is no traffic of its own
    for one, other in zip(given, explained, strict=True):
        heatmap = other["heatmap"]
        assert one["heatmap"] is None and one | {"heatmap": heatmap} == other
        assert heatmap["text"] == one["label"] and heatmap["box"] == [0, 0, 1, 1]
        assert np.shape(heatmap["grid"]) == (4, 4) and np.abs(heatmap["grid"]).max() == 1
    wide = b64(png(Image.new("RGB", (80, 40), (200, 40, 40))))
    form = [("image", ("0.png", FILES[0])), *[("text", (None, text)) for text in TEXTS], ("explain", (None, "true"))]
    by_text = server.client.post("/v1/similarity", files=form).json()["heatmaps"]
    assert [[h["text"] for h in maps] for maps in by_text] == [TEXTS]
    assert by_text[0][0]["grid"] != by_text[0][1]["grid"]
    asked = server.post("/v1/classify", {"images": wide, "classes": ["red", "green", "blue"], "explain": True}).json()
    assert asked["predictions"][0]["heatmap"]["box"] == [0.25, 0, 0.75, 1]  # the model sees the middle


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/classify", {"images": IMAGES[:1] * 9}), ("/v1/similarity", {"images": IMAGES[:1], "texts": ["a"] * 9})],
)
def test_more_heatmaps_than_a_request_may_have_are_refused(server, path, body):
    refused = server.post(path, {**body, "explain": True})
    assert refused.status_code == 413 and "more than 8" in refused.json()["detail"]
    assert server.post(path, {**body, "explain": False}).status_code == 200


def test_a_drift_report_shows_where_the_champion_looked(own):
    images = [made_image("red", number) for number in range(4)]
    champion = tracking.resolve_version("models:/clipft-general/1")
    compared = model_search.compare("general", champion, images, [""] * 4, np.zeros((4, 5)), closely=[2, 0])
    assert compared.looked.keys() == {0, 2} and compared.looked[0].size == images[0].size
    assert np.abs(np.asarray(compared.looked[0], int) - np.asarray(images[0], int)).max() > 20


def test_one_image_is_classified_without_a_list(server):
    assert [p["label"] for p in server.post("/v1/classify", {"images": IMAGES[0]}).json()["predictions"]] == ["red square"]


def test_every_class_asked_has_a_score(server):
    answer = server.post("/v1/classify", {"images": IMAGES[0], "classes": ["red square", "red square"]})
    if answer.status_code == 200:
        assert len(answer.json()["predictions"][0]["scores"]) == 2
    else:
        assert answer.status_code == 422


def test_a_multipart_form_from_curl_gives_the_same_answer(server, plain, tmp_path):
    for number, file in enumerate(FILES[:2]):
        (tmp_path / f"{number}.png").write_bytes(file)
    form = ["-F", f"image=@{tmp_path}/0.png", "-F", f"image=@{tmp_path}/1.png", "-F", "domain=general"]
    texts = [part for text in TEXTS for part in ("-F", f"text={text}")]
    done = subprocess.run(
        ["curl", "-sS", "--fail", "-m", "30", *form, *texts, f"{server.url}/v1/similarity"], capture_output=True, check=True
    )
    assert close(json.loads(done.stdout)["similarity"], plain["1"].images(FILES[:2]) @ plain["1"].texts().T)


def test_multipart_forms_serve_every_route(server, plain):
    files = [("image", (f"{n}.png", f, "image/png")) for n, f in enumerate(FILES)]
    images = server.client.post("/v1/embed/images", files=files).json()
    assert close(images["embeddings"], plain["1"].images())
    texts = server.client.post("/v1/embed/texts", files=[("text", (None, t)) for t in TEXTS]).json()
    assert close(texts["embeddings"], plain["1"].texts())
    classes = [("class", (None, c)) for c in ("blue square", "red square")]
    given = server.client.post("/v1/classify", files=files + classes).json()["predictions"]
    assert [p["label"] for p in given] == ["red square", "blue square"] * 2


def test_every_answer_says_where_it_comes_from(server):
    version = tracking.resolve_version("models:/clipft-general/1")
    asked = {"/v1/embed/images": {"images": IMAGES[0]}, "/v1/embed/texts": {"texts": "x"}, "/v1/classify": {"images": IMAGES[0]},
             "/v1/similarity": {"images": IMAGES[0], "texts": "x"}}  # fmt: skip
    for path, body in asked.items():
        headers = server.post(path, body).headers
        assert headers["x-clipft-domain"] == "general"
        assert headers["x-clipft-model-version"] == "1"
        assert headers["x-clipft-run-id"] == version.run_id
        assert headers["x-clipft-dataset"] == "general/v1"
        assert headers["x-request-id"]
    (model,) = server.get("/v1/models").json()["data"]
    assert (model["version"], model["lineage"]["run_id"], model["side"]) == ("1", version.run_id, 32)
    assert model["classes"] == ["blue square", "red square"]


def test_a_request_keeps_the_id_that_its_client_gave(server):
    answer = server.client.post("/v1/embed/texts", json={"texts": "x"}, headers={"X-Request-Id": "mine-17"})
    assert answer.headers["x-request-id"] == "mine-17"


def test_an_unknown_domain_is_not_found_and_the_answer_names_those_that_are(server):
    answer = server.post("/v1/embed/texts", {"texts": "x", "domain": "medical"})
    assert answer.status_code == 404
    assert "medical" in answer.json()["detail"] and "general" in answer.json()["detail"]


# The description of the interface -----------------------------------------------------------------------------------


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from ([part["$ref"]] if isinstance(part.get("$ref"), str) else [])
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def bodies(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """JSON request bodies that carry an example, by path."""
    posts = {
        path: item["post"]["requestBody"]["content"]["application/json"]
        for path, item in document["paths"].items()
        if "post" in item
        and "application/json" in item["post"]["requestBody"]["content"]
        and path != "/v1/feedback"  # whose example would name an answer that was never given
    }
    assert len(posts) == 6 and all("example" in body for body in posts.values())
    return posts


def test_the_openapi_document_is_valid_and_every_reference_leads_somewhere(server):
    from fastapi.openapi.models import OpenAPI

    document = server.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) - known == set()


def test_every_openapi_example_runs_as_it_is(server):
    answers = {path: server.post(path, body["example"]) for path, body in bodies(server.get("/openapi.json").json()).items()}
    assert answers.pop("/v1/search").json()["code"] == "search.no_index"  # which nobody has built here
    assert {path: a.text for path, a in answers.items() if a.status_code != 200} == {}


def test_every_openapi_example_fits_its_own_schema(server):
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import _WrappedReferencingError

    document = server.get("/openapi.json").json()
    wrong = {}
    for path, body in bodies(document).items():
        whole = {**body["schema"], "components": document["components"]}
        try:
            errors = [e.message for e in Draft202012Validator(whole).iter_errors(body["example"])]
        except _WrappedReferencingError as error:
            errors = [str(error)]
        if errors:
            wrong[path] = errors
    assert wrong == {}


def test_the_pages_for_people_open(server):
    assert "clipft" in server.get("/docs").text and server.get("/docs").status_code == 200
    assert server.get("/").headers["content-type"].startswith("text/html")

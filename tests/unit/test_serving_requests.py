"""What a request becomes before a model sees it, and which of its images are captured."""

import base64
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from pydantic import ValidationError

from clipft_tasks.contracts.drift import answer_hash
from clipft_tasks.core.errors import TransientError
from serving.inference import captures as module
from serving.inference import forms
from serving.inference.admission import SMALL_BODY, Admission, is_plain
from serving.inference.captures import Captures
from serving.inference.embedding_request import EmbeddingsRequest
from serving.inference.errors import RequestRejectedError
from serving.inference.loaded_model import Ranking
from serving.inference.metrics import Metrics
from serving.inference.request_parsing import documented, read
from serving.inference.schemas import Classify, EmbedImages, InferenceBody
from serving.inference.settings import ServingSettings

IMAGE = bytes(range(256))


def test_an_image_is_bytes_whether_it_came_as_json_or_as_a_form():
    text = base64.b64encode(IMAGE).decode()
    for body in (
        EmbedImages.model_validate_json(json.dumps({"images": {"base64": text}})),
        EmbedImages.model_validate({"images": [{"base64": IMAGE}]}),
    ):
        assert [image.content for image in body.images] == [IMAGE]


SPELLED = {
    "data URI": lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
    "data URI in capitals": lambda data: "DATA:IMAGE/PNG;CHARSET=UTF-8;BASE64," + base64.b64encode(data).decode(),
    "data URI after a space": lambda data: "\n data:image/png; base64 , " + base64.b64encode(data).decode(),
    "data URI without a type": lambda data: "data:;base64," + base64.b64encode(data).decode(),
    "data URI, URL-safe by name": lambda data: "data:image/png;base64url," + base64.urlsafe_b64encode(data).decode(),
    "percent-encoded": lambda data: "data:image/png;base64," + quote(base64.b64encode(data), safe=""),
    "percent-encoded in small letters": lambda data: (
        quote(base64.encodebytes(data), safe="").replace("%3D", "%3d").replace("%2B", "%2b")
    ),
    "wrapped lines": lambda data: base64.encodebytes(data).decode(),
    "one newline": lambda data: base64.b64encode(data).decode() + "\n",
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "no padding": lambda data: base64.b64encode(data).decode().rstrip("="),
    "URL-safe without padding": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
}


@pytest.mark.parametrize("spelled", SPELLED)
def test_base64_is_read_in_every_spelling_that_people_send(spelled):
    text = SPELLED[spelled](IMAGE)
    [image] = EmbedImages.model_validate_json(json.dumps({"images": {"base64": text}})).images
    assert image.content == IMAGE


@pytest.mark.parametrize("spelled", [name for name in SPELLED if name.startswith("data URI") or name == "percent-encoded"])
def test_an_input_that_is_a_data_uri_is_an_image_however_it_is_spelled(spelled):
    body = EmbeddingsRequest.model_validate_json(json.dumps({"input": ["data: is no URI, is it", SPELLED[spelled](IMAGE)]}))
    assert body.parts == ["data: is no URI, is it", IMAGE]


@pytest.mark.parametrize("wrong", ["data:image/png,AAAA", "AA%41A", "AAAAA", "ä", "AA!A", "data:"])
def test_what_is_not_base64_is_refused_by_its_place(wrong):
    with pytest.raises(ValidationError) as error:
        EmbedImages.model_validate({"images": [{"base64": wrong}]})
    [found] = error.value.errors()
    assert found["loc"] == ("images", 0, "base64") and "not base64" in found["msg"]


FIELD = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na\r\n'
FORM = "multipart/form-data; boundary=x"


def test_a_form_of_too_many_fields_is_refused_before_one_is_read(monkeypatch):
    for start in (b"", b"\r\n"):
        assert len(forms.read_form(memoryview(start + 50 * FIELD + b"--x--"), FORM, 50)) == 50
        with pytest.raises(RequestRejectedError, match="more than 49 fields"):
            forms.read_form(memoryview(start + 50 * FIELD + b"--x--"), FORM, 49)
    monkeypatch.setattr(forms, "MultipartParser", None)  # nothing can be read
    for piece in (forms.PIECE, 7, len(FIELD)):
        monkeypatch.setattr(forms, "PIECE", piece)
        with pytest.raises(RequestRejectedError, match="more than 50 fields"):
            forms.read_form(memoryview(100 * FIELD + b"--x--"), FORM, 50)


@pytest.mark.parametrize("count", [1, 15])
def test_a_body_of_one_image_is_parsed_at_once_and_one_of_many_parts_is_not(count):
    image = {"base64": base64.b64encode(IMAGE * 400).decode()}
    many = json.dumps({"images": [image] * count}).encode()
    assert len(many) > SMALL_BODY and is_plain(memoryview(many)) == (count == 1)
    assert not is_plain(memoryview(b'{"texts":[' + b",".join([b"1"] * 60_000) + b"]}"))
    body = read(memoryview(many), "application/json", EmbedImages, Admission(ServingSettings()))
    assert [one.content for one in body.images] == [IMAGE * 400] * count


def test_a_body_without_an_example_is_documented_all_the_same():
    class Bare(InferenceBody):
        number: int = 0

    content = documented(Bare)["requestBody"]["content"]["application/json"]
    assert "example" not in content and content["schema"]["properties"].keys() == {"domain", "version", "number"}
    assert documented(Classify)["requestBody"]["content"]["application/json"]["example"]


# Captures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path):
    made = []

    def captures(share: float = 1) -> Captures:
        made.append(Captures(tmp_path, Metrics(), most_bytes=2**20, most_seconds=60, share=share))
        return made[-1]

    yield captures
    for one in made:
        one.close()


def ranking(scores: list[list[float]]) -> Ranking:
    """Of a model that is unsure below a margin of .1 and finds nothing new."""
    reference = SimpleNamespace(novelty=lambda image: np.zeros(len(image)), uncertainty_threshold=0.1)
    model = SimpleNamespace(domain="general", version="1", reference=reference, temperature_scale=1.0)
    model.classes, model.calibration = ["a", "b"], None
    return Ranking(model, ["a", "b"], np.zeros((len(scores), 2)), None, np.array(scores))


def test_where_chance_keeps_nothing_neither_scores_nor_images_are_touched(make, monkeypatch):
    monkeypatch.setattr(module.random, "random", lambda: 0.9)
    untouchable = SimpleNamespace(model=SimpleNamespace(domain="general"))
    for share in (0, 0.2):
        captures = make(share)
        captures.sample("id", untouchable, [object(), object()])  # touching one would raise
        captures.flush()
        assert captures.all("general") == []


def test_what_the_model_is_unsure_of_is_kept_four_times_as_often(make, monkeypatch):
    monkeypatch.setattr(module.random, "random", lambda: 0.5)
    captures = make(0.2)
    captures.sample("id", ranking([[0.9, 0.1], [0.51, 0.5], [0.1, 0.9]]), [b"sure", b"unsure", b"sure too"])
    captures.flush()
    [kept] = captures.all("general")
    assert kept.why == "unsure" and kept.predicted == "a" and captures.image_bytes("general", kept.id) == b"unsure"


def test_a_share_set_while_running_counts_until_it_is_taken_back(make):
    captures = make(0)
    assert captures.set_share("general", 1) is None
    captures.sample("id", ranking([[0.9, 0.1]]), [b"image"])
    captures.flush()
    assert len(captures.all("general")) == 1
    assert captures.set_share("general", None) == 1
    captures.sample("other", ranking([[0.9, 0.1]]), [b"image"])
    captures.flush()
    assert len(captures.all("general")) == 1


FULL = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("what", ["image", "json"])
def test_a_full_disk_costs_captures_and_is_said_once(make, tmp_path, caplog, what):
    captures, folder = make(), tmp_path / "general"
    folder.mkdir()
    for n in range(2):
        (folder / f"{answer_hash('full')}-{n}.{what}.part").symlink_to(FULL)
    captures.sample("full", ranking([[0.9, 0.1]] * 3), [b"first", b"second", b"third"])
    captures.flush()
    [kept] = captures.all("general")
    assert captures.image_bytes("general", kept.id) == b"third"
    assert len(list(folder.iterdir())) == 2  # no half of the others lies about
    assert captures.delete("full") == 1 and list(folder.iterdir()) == []
    assert caplog.text.count("cannot be kept") == 1 and "No space left" in caplog.text


def test_captures_survive_whatever_lies_in_their_folder(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIDY", 0.05)
    folder = tmp_path / "general"
    for name in ("lost+found", ".Trash-0/files", "general/folder.json"):
        (tmp_path / name).mkdir(parents=True)
    strays = {
        "null.json": '{"time": null}',
        "list.json": "[]",
        "deep.json": "[" * 100_000,
        "nan.json": '{"time": NaN}',
        "no.json": "",
    }
    for name, text in strays.items():
        (folder / name).write_text(text)
    left = [folder / "0-0.image", folder / "0-1.json.part"]
    for path in left:
        path.write_bytes(b"half of a capture")
        os.utime(path, (0, 0))
    captures = make()
    time.sleep(0.4)  # several rounds
    assert captures.alive
    captures.sample("id", ranking([[0.9, 0.1]]), [b"image"])
    captures.flush()
    assert [captures.image_bytes("general", c.id) for c in captures.all("general")] == [b"image"]
    assert captures.delete("id") == 1
    assert not any(path.exists() for path in left)


def test_whoever_waits_for_captures_on_a_disk_that_hangs_is_told_so(make, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.1)
    captures, hanging = make(), threading.Event()
    monkeypatch.setattr(captures, "_keep", lambda *_: hanging.wait(10))
    captures.sample("id", ranking([[0.9, 0.1]]), [b"image"])
    with pytest.raises(TransientError, match="Ask again"):
        captures.delete("id")
    assert captures.busy_since is not None
    hanging.set()

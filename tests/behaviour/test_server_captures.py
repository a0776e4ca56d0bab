"""Images that the server keeps for labeling: a real uvicorn process that keeps everything, in little space."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import COLORS, made_image
from fixtures.live_server import CLASSES, EMBED_IMAGES, FILES, TOKEN, Server, b64, package, png

from clipft_tasks.contracts.drift import answer_hash

pytestmark = pytest.mark.slow

SPACE = 30_000  # bytes; some twenty-five of the images
CAPTURES, FEEDBACK = "/v1/captures/general", "/v1/feedback"
SHOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def shared(own: Path) -> Iterator[Server]:
    with Server(own, capture=1, capture_mb=SPACE / 2**20, drift_seconds=0) as server:
        yield server.ready()


@pytest.fixture
def folder(own: Path, server: Server) -> Path:
    """Where the images of the domain lie; nothing is kept yet."""
    kept(server)  # what is on its way has arrived
    shutil.rmtree(own / "captures", ignore_errors=True)
    return own / "captures" / "general"


def ask(server: Server, files: list[bytes], request_id: str = "", **headers: str) -> httpx.Response:
    headers |= {"X-Request-Id": request_id} if request_id else {}
    answer = server.client.post(CLASSES, json={"images": [b64(f) for f in files]}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def kept(server: Server) -> list[dict[str, Any]]:
    answer = server.client.get(CAPTURES, headers=SHOWN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def image(server: Server, name: str) -> httpx.Response:
    return server.client.get(f"{CAPTURES}/{name}", headers=SHOWN)


def images(server: Server) -> list[bytes]:
    return [image(server, c["id"]).content for c in kept(server)]


def delete(server: Server, request_id: str) -> httpx.Response:
    return server.client.delete(f"/v1/answers/{quote(request_id, safe='')}", headers=SHOWN)


def label(server: Server, name: str, what: str) -> httpx.Response:
    return server.client.put(f"{CAPTURES}/{name}", json={"label": what}, headers=SHOWN)


def judge(server: Server, request_id: str, index: int, what: str) -> httpx.Response:
    return server.client.post(FEEDBACK, json={"answer_id": request_id, "index": index, "label": what}, headers=SHOWN)


def everything(folder: Path) -> bytes:
    """Names and contents of whatever lies in a folder."""
    return b"".join(str(p.relative_to(folder)).encode() + (p.read_bytes() if p.is_file() else b"") for p in folder.rglob("*"))


def grow_old(folder: Path, days: float) -> None:
    """As if what is kept had been kept for days already."""
    then = time.time() - days * 86400
    for path in folder.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": then}))
    for path in folder.iterdir():
        os.utime(path, (then, then))


def outcomes(server: Server) -> dict[str, float]:
    return {k[2]: v for k, v in server.metrics().items() if k[0] == "clipft_captures_total"}


# Kept ---------------------------------------------------------------------------------------------------------------


def test_every_image_is_kept_as_it_was_sent_with_what_was_said_about_it(server, folder):
    before = sum(outcomes(server).values())
    answer = ask(server, FILES)
    found = kept(server)
    assert images(server) == FILES
    assert [c["predicted"] for c in found] == [p["label"] for p in answer.json()["predictions"]]
    assert [c["confidence"] for c in found] == pytest.approx([p["probability"] for p in answer.json()["predictions"]])
    assert {(c["domain"], c["version"], c["label"]) for c in found} == {("general", "1", "")}
    assert {c["why"] for c in found} <= {"random", "new", "unsure"}
    assert len({c["id"] for c in found}) == len(FILES) and len({c["request"] for c in found}) == 1
    assert sum(outcomes(server).values()) == before + len(FILES)
    assert server.put("2").status_code == 200
    ask(server, FILES[:1])
    assert [c["version"] for c in kept(server)] == ["1"] * len(FILES) + ["2"]


def test_a_image_from_a_form_is_kept_as_it_was_sent(server, folder):
    assert server.client.post(CLASSES, files={"image": ("cat.png", FILES[1], "image/png")}).status_code == 200
    assert images(server) == [FILES[1]] and b"cat" not in everything(folder)


def test_a_image_of_another_kind_is_kept_because_it_looks_new(server, folder):
    stripes = made_image("red", 5).rotate(45).point(lambda v: 255 - v // 9)
    ask(server, [png(stripes)])
    found = kept(server)[0]
    assert found["novelty"] > 1 and found["why"] == "new"


def test_what_the_pipeline_itself_asks_is_not_kept(server, folder):
    ask(server, FILES, **SHOWN, **{"X-Clipft-Internal": "1"})
    assert kept(server) == []


def test_a_stranger_that_calls_itself_the_pipeline_is_kept_like_anybody(server, folder):
    ask(server, FILES, **{"X-Clipft-Internal": "1"})
    assert images(server) == FILES


def test_what_is_refused_is_not_kept(server, folder):
    assert server.post(CLASSES, {"images": [b64(FILES[0]), b64(b"words")]}).status_code == 422
    assert server.post(EMBED_IMAGES, {"images": b64(b"words")}).status_code == 422
    assert kept(server) == [] and not folder.exists()


def test_a_version_without_a_usable_reference_has_its_images_kept_too(server, folder, tmp_path):
    place = package("2") / "reference.safetensors"
    shutil.move(place, tmp_path / "reference.safetensors")
    try:
        assert server.put("2").status_code == 200
        ask(server, FILES)
        found = images(server)
    finally:
        shutil.move(tmp_path / "reference.safetensors", place)
    assert found == FILES


# Nothing about who sent it ------------------------------------------------------------------------------------------


def test_nothing_tells_who_sent_a_image(server, folder):
    marks = {"User-Agent": "smith-browser", "X-Forwarded-For": "203.0.113.7", "Cookie": "session=smith", "From": "smith@clinic"}
    ask(server, FILES, "patient-smith-1970", **marks)
    assert len(kept(server)) == len(FILES)
    content = everything(folder) + json.dumps(kept(server)).encode()
    for said in (b"smith", b"203.0.113.7", b"127.0.0.1", b"patient", b"clinic", b"1970", TOKEN.encode()):
        assert said not in content, said
    known = {"id", "request", "domain", "version", "time", "predicted", "confidence", "novelty", "why", "sha256", "label"}
    for path in folder.glob("*.json"):
        assert set(json.loads(path.read_text())) == known


PATHS = ["../../etc/passwd", "/etc/passwd", "..\\..\\windows", "a/../../../b", "....//", "%2e%2e%2fetc", "*"]


@pytest.mark.parametrize("request_id", PATHS)
def test_a_request_that_is_named_like_a_path_stays_in_the_folder(server, folder, own, request_id):
    before = {p for p in own.parent.rglob("*") if "captures" not in p.parts}
    ask(server, FILES[:2], request_id)
    assert images(server) == FILES[:2]
    new = {p for p in own.parent.rglob("*") if "captures" not in p.parts} - before
    assert {p for p in new if "mlflow" not in p.parts} == set()
    assert len(list(folder.iterdir())) == 4
    assert all(re.fullmatch(r"[0-9a-f]+-[01]\.(json|image)", p.name) for p in folder.iterdir())


@pytest.mark.parametrize("request_id", PATHS)
def test_a_request_that_is_named_like_a_path_can_be_judged_and_deleted(server, folder, request_id):
    ask(server, FILES[:1])
    request_id = ask(server, FILES[1:3], request_id).headers["x-clipft-answer-id"]
    assert judge(server, request_id, 1, "blue square").status_code == 200
    assert [c["label"] for c in kept(server)] == ["", "", "blue square"]
    answer = delete(server, request_id)
    assert answer.status_code == 200 and answer.json() == {"deleted": 2}
    assert images(server) == FILES[:1]


def test_nothing_outside_the_folder_can_be_read_or_written_by_name(server, folder, own):
    ask(server, FILES[:1])
    name = kept(server)[0]["id"]
    (own / "outside.image").write_bytes(b"secret")
    (own / "outside.json").write_text("{}")
    for path in ("../../outside", "..\\..\\outside", f"{own}/outside", f"../general/{name}", "*", "g" * 24 + "-0"):
        way = f"{CAPTURES}/{quote(path, safe='')}"
        assert server.client.get(way, headers=SHOWN).status_code == 404, path
        assert server.client.put(way, json={"label": "x"}, headers=SHOWN).status_code == 404, path
    for domain in ("../mlflow", "gen*", "nowhere!", "captures/../general"):
        way = f"/v1/captures/{quote(domain, safe='')}"
        assert server.client.get(way, headers=SHOWN).status_code == 404, domain
        assert server.client.get(f"{way}/{name}", headers=SHOWN).status_code == 404, domain
    assert (own / "outside.json").read_text() == "{}"


def test_only_the_token_opens_what_is_kept(server, folder):
    request_id = ask(server, FILES[:1]).headers["x-clipft-answer-id"]
    name = kept(server)[0]["id"]
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        for method, path, body in (
            ("GET", CAPTURES, None), ("GET", f"{CAPTURES}/{name}", None), ("PUT", f"{CAPTURES}/{name}", {"label": "x"}),
            ("DELETE", f"/v1/answers/{request_id}", None), ("GET", f"/v1/answers/{request_id}", None),
        ):  # fmt: skip
            answer = server.client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 401 and FILES[0] not in answer.content
    assert images(server) == FILES[:1] and kept(server)[0]["label"] == ""


# Labels -------------------------------------------------------------------------------------------------------------


def test_feedback_labels_the_image_that_was_judged(server, folder):
    request_id = ask(server, FILES).headers["x-clipft-answer-id"]
    assert judge(server, request_id, 2, "blue square").status_code == 200
    assert [c["label"] for c in kept(server)] == ["", "", "blue square", ""]
    assert judge(server, request_id, 2, "red square").json()["counted"] is False  # the first word counts, here and there
    assert [c["label"] for c in kept(server)] == ["", "", "blue square", ""]
    assert images(server) == FILES


def test_a_label_can_be_given_changed_and_taken_back(server, folder):
    ask(server, FILES[:2])
    first, second = kept(server)
    for what in ("red square", "etwas völlig anderes", ""):
        answer = label(server, first["id"], what)
        assert answer.status_code == 200 and answer.json() == {"id": first["id"], "label": what}
        assert kept(server) == [first | {"label": what}, second]
    assert label(server, first["id"], "x" * 501).status_code == 422
    assert label(server, "0" * 24 + "-0", "red square").status_code == 404
    assert server.client.put(f"/v1/captures/medical/{first['id']}", json={"label": "x"}, headers=SHOWN).status_code == 404
    assert images(server) == FILES[:2]


# Deleted ------------------------------------------------------------------------------------------------------------


def test_two_answers_to_requests_of_one_name_are_two(server, folder):
    """An application that passes its own request id on, as proxies do, asks twice for one request of a user."""
    first, second = (ask(server, [file], "user-request-7") for file in FILES[:2])
    assert first.headers["x-request-id"] == second.headers["x-request-id"] == "user-request-7"
    assert judge(server, "user-request-7", 0, "blue square").status_code == 404
    assert delete(server, "user-request-7").status_code == 404
    assert judge(server, second.headers["x-clipft-answer-id"], 0, "blue square").json()["counted"] is True
    assert [(c["label"], image(server, c["id"]).content) for c in kept(server)] == [("", FILES[0]), ("blue square", FILES[1])]
    assert delete(server, first.headers["x-clipft-answer-id"]).json() == {"deleted": 1}
    assert images(server) == FILES[1:2]


@pytest.mark.parametrize("name", ["x" * 129, "größe-1".encode(), b"a\tb"], ids=["long", "not ASCII", "a tab"])
def test_a_name_that_would_have_to_be_changed_is_refused(server, name):
    answer = server.client.post(CLASSES, json={"images": [b64(FILES[0])]}, headers={"X-Request-Id": name})
    assert answer.status_code == 400 and "X-Request-Id" in answer.json()["detail"]


def test_a_share_of_a_domain_that_there_is_not_is_refused(server):
    assert server.client.put("/v1/captures/no_such_domain", json={"share": 1}, headers=SHOWN).status_code == 404


def test_a_name_of_any_length_is_no_capture(server):
    assert image(server, "0" * 5000).status_code == 404
    assert server.client.get("/v1/captures/" + "g" * 5000, headers=SHOWN).status_code == 404


def test_deleting_a_request_deletes_the_bytes_of_its_images_and_no_others(server, folder):
    first = ask(server, FILES[:3]).headers["x-clipft-answer-id"]
    second = ask(server, FILES[3:]).headers["x-clipft-answer-id"]
    gone = [c["id"] for c in kept(server)[:3]]
    answer = delete(server, first)
    assert (answer.status_code, answer.json()) == (200, {"deleted": 3})
    assert images(server) == FILES[3:] and len(list(folder.iterdir())) == 2
    assert all(f not in everything(folder) for f in FILES[:3])
    assert {image(server, name).status_code for name in gone} == {404}
    assert {label(server, name, "x").status_code for name in gone} == {404}
    assert judge(server, first, 0, "red square").status_code in (200, 404)
    assert images(server) == FILES[3:]  # a label brings nothing back
    assert delete(server, first).status_code == delete(server, "never asked").status_code == 404  # nothing is known of it
    assert delete(server, second).json() == {"deleted": 1} and list(folder.iterdir()) == []


def test_beyond_the_space_the_oldest_go_first(server, folder):
    sent = [png(made_image(color, 3000 + n)) for n in range(24) for color in COLORS]
    assert sum(map(len, sent)) > 1.5 * SPACE
    for start in range(0, len(sent), 8):
        ask(server, sent[start : start + 8])
    found = images(server)
    assert found == sent[-len(found) :]
    assert SPACE - 2 * max(map(len, sent)) < sum(map(len, found)) <= SPACE
    assert sum(p.stat().st_size for p in folder.glob("*.image")) <= SPACE
    assert all(f not in everything(folder) for f in sent[: -len(found)])


def test_what_is_too_old_goes_when_something_new_comes(server, folder):
    ask(server, FILES[:2])
    kept(server)
    grow_old(folder, 40)
    ask(server, FILES[2:])
    assert images(server) == FILES[2:]


def test_what_is_too_old_goes_even_when_nothing_new_comes(server, folder):
    ask(server, FILES[:2])
    kept(server)
    grow_old(folder, 40)
    assert kept(server) == [] and list(folder.glob("*.image")) == []


def test_a_label_does_not_make_a_image_stay_longer(server, folder):
    ask(server, FILES[:2])
    name = kept(server)[0]["id"]
    grow_old(folder, 40)
    assert label(server, name, "red square").status_code in (200, 404)
    ask(server, FILES[2:])
    assert images(server) == FILES[2:]


# A folder that cannot be written ------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_costs_captures_and_no_answers(server, folder):
    root = folder.parent
    root.write_bytes(b"a file where the folder should be")
    try:
        failed = outcomes(server).get("failed", 0)
        answer = ask(server, FILES)
        request_id, labels = answer.headers["x-clipft-answer-id"], [p["label"] for p in answer.json()["predictions"]]
        assert kept(server) == []
        assert outcomes(server)["failed"] == failed + len(FILES)
        assert judge(server, request_id, 0, labels[0]).json() == {"predicted": labels[0], "version": "1", "counted": True}
        assert delete(server, request_id).json() == {"deleted": 0}
    finally:
        root.unlink()
    ask(server, FILES)
    assert images(server) == FILES


FULL = Path("/dev/full")  # every write to it fails as on a full disk


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_label_on_a_full_disk_is_refused_with_the_reason_and_the_one_before_stands(server, folder):
    ask(server, FILES[:1])
    [found] = kept(server)
    assert label(server, found["id"], "red square").status_code == 200
    (folder / f"{found['id']}.json.part").symlink_to(FULL)
    refused = label(server, found["id"], "blue square")
    assert refused.status_code == 507 and "No space left" in refused.json()["detail"]
    assert kept(server) == [found | {"label": "red square"}] and images(server) == FILES[:1]
    assert label(server, found["id"], "blue square").status_code == 200


def test_a_flood_of_one_label_labels_only_the_images_that_were_asked_about(server, folder):
    request_id = ask(server, FILES[:2]).headers["x-clipft-answer-id"]
    ask(server, FILES[2:], "somebody else's")
    for index in range(10):
        for request in (request_id, "nobody asked this", f"{answer_hash(request_id)}-0", "*", "../../general"):
            judge(server, request, index, "blue square")
    assert [c["label"] for c in kept(server)] == ["blue square"] * 2 + [""] * (len(FILES) - 2)


def test_a_label_that_cannot_be_written_does_not_fail_the_feedback(server, folder):
    answer = ask(server, FILES[:1])
    name = kept(server)[0]["id"]
    (folder / f"{name}.json.part").mkdir()  # where the new JSON would be written
    judged = judge(server, answer.headers["x-clipft-answer-id"], 0, "red square")
    assert judged.status_code == 200 and judged.json()["counted"] is True
    assert images(server) == FILES[:1]


# How much is kept ---------------------------------------------------------------------------------------------------


def test_a_share_set_while_running_can_be_taken_back_and_what_was_set_before_is_said(server, folder):
    def share(value: float | None) -> dict[str, Any]:
        answer = server.client.put(CAPTURES, json={"share": value}, headers=SHOWN)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert share(0.0) == {"domain": "general", "share": 0.0, "before": None}
    ask(server, FILES[:1])
    assert kept(server) == []
    assert share(0.5)["before"] == 0.0
    assert share(None) == {"domain": "general", "share": None, "before": 0.5}
    ask(server, FILES[:1])
    assert len(kept(server)) == 1  # as the server was started
    assert share(None)["before"] is None
    assert server.client.put(CAPTURES, json={}, headers=SHOWN).status_code == 422

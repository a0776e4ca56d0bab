"""Keys of clients: what each opens, its quota, and the line that whatever it changes leaves."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from fixtures.live_server import CLASSES, EMBED_TEXTS, IMAGES, TOKEN

from clipft_tasks.cli.main import main
from clipft_tasks.core.settings import settings

pytestmark = pytest.mark.slow
FEEDBACK, MODEL = "/v1/feedback", "/v1/models/general"


def key(name: str, *options: str) -> str:
    """What `clipft key add` shows."""
    done = CliRunner().invoke(main, ["key", "add", name, *options])
    assert done.exit_code == 0, done.output
    return done.output.split()[-1]


@pytest.fixture(scope="module")
def make(own: Path) -> Iterator[Callable[..., TestClient]]:
    from serving.inference.app import create_app
    from serving.inference.settings import ServingSettings

    opened = []

    def client(**options: Any) -> TestClient:
        made = TestClient(create_app(ServingSettings(device="cpu", poll_seconds=0, **options)), raise_server_exceptions=False)
        opened.append(made.__enter__())
        for _ in range(300):
            if made.get("/readyz").status_code == 200:
                return made
            time.sleep(0.1)
        raise AssertionError(made.get("/readyz").text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
        patch.setattr("serving.inference.keys.LOOK_SECONDS", 0.0)
        settings.cache_clear()
        yield client
        for one in opened:
            one.__exit__(None, None, None)
    settings.cache_clear()


@pytest.fixture(scope="module")
def closed(make: Callable[..., TestClient]) -> TestClient:
    """A server where nobody infers without a key."""
    return make(open=False)


def ask(client: TestClient, shown: str = "", path: str = EMBED_TEXTS, body: Any = None, method: str = "POST") -> Any:
    headers = {"Authorization": f"Bearer {shown}"} if shown else {}
    return client.request(method, path, json=body if body is not None else {"texts": "x"}, headers=headers)


def test_a_key_opens_what_its_scopes_say_and_nothing_else(closed):
    reader, judge = key("reader"), key("judge", "--scope", "infer", "--scope", "feedback")
    assert ask(closed).status_code == 401 and ask(closed, "made up").status_code == 401
    answer = ask(closed, judge, CLASSES, {"images": IMAGES[0]})
    assert ask(closed, reader).status_code == answer.status_code == 200
    verdict = {"answer_id": answer.headers["x-clipft-answer-id"], "label": "red square"}
    refused = ask(closed, reader, FEEDBACK, verdict)
    assert refused.status_code == 403 and "'reader'" in refused.json()["detail"] and "feedback" in refused.json()["detail"]
    assert ask(closed, judge, FEEDBACK, verdict).status_code == 200
    assert ask(closed, judge, MODEL, {"version": "1"}, "PUT").status_code == 403
    assert ask(closed, TOKEN, MODEL, {"version": "1"}, "PUT").status_code == 200
    assert "security" in closed.get("/openapi.json").json()["paths"][EMBED_TEXTS]["post"]


def test_a_key_that_is_removed_or_has_run_out_opens_nothing(closed):
    short, gone = key("short", "--days", "0.00001"), key("gone")
    assert ask(closed, gone).status_code == 200
    assert CliRunner().invoke(main, ["key", "remove", "gone"]).exit_code == 0
    time.sleep(1)
    assert ask(closed, gone).status_code == 401 and ask(closed, short).status_code == 401
    listed = CliRunner().invoke(main, ["key", "list"]).output
    assert "short" in listed and "gone" not in listed and short not in listed
    assert settings().server_keys_file.stat().st_mode & 0o077 == 0 and short not in settings().server_keys_file.read_text()


def test_a_file_of_keys_that_cannot_be_read_changes_nothing(closed):
    steady = key("steady")
    assert ask(closed, steady).status_code == 200
    path = settings().server_keys_file
    whole = path.read_text()
    try:
        path.write_text(whole[: len(whole) // 2])
        assert ask(closed, steady).status_code == 200 and ask(closed, "made up").status_code == 401
    finally:
        path.write_text(whole)


def test_a_quota_is_said_and_leaves_others_alone(closed):
    few, others = key("few", "--requests-per-minute", "3"), key("others")
    answers = [ask(closed, few) for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1].headers["retry-after"]) == 20 and "3 requests a minute" in answers[-1].json()["detail"]
    assert ask(closed, others).status_code == 200 and closed.get("/healthz").status_code == 200


def test_whatever_changes_something_leaves_a_line_that_names_who(closed, caplog):
    caplog.set_level("INFO", logger="clipft.audit")
    ask(closed, TOKEN, MODEL, {"version": "1"}, "PUT")
    ask(closed, key("curious"), MODEL, {"version": "1"}, "PUT")
    ask(closed, TOKEN)
    lines = [json.loads(r.message) for r in caplog.records if r.name == "clipft.audit"]
    assert [(line["caller"], line["path"], line["status"]) for line in lines] == [
        ("operator", MODEL, 200),
        ("curious", MODEL, 403),
    ]


def test_pages_of_allowed_origins_may_ask_and_of_no_other(make):
    client = make(cors="https://app.example")
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
    allowed = client.options(EMBED_TEXTS, headers={"Origin": "https://app.example", **preflight})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert client.options(EMBED_TEXTS, headers={"Origin": "https://evil.example", **preflight}).status_code == 400
    answer = client.post(EMBED_TEXTS, json={"texts": "x"}, headers={"Origin": "https://app.example"})
    assert answer.status_code == 200  # and inference is open, by default
    assert "X-Clipft-Answer-Id" in answer.headers["access-control-expose-headers"]
    refused = client.put(MODEL, json={"version": "1"}, headers={"Origin": "https://app.example"})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == "https://app.example"
    assert client.delete("/v1/shadows/x/y").status_code == 404
    assert client.post("/v1/shadows/general").headers["allow"] == "DELETE, GET, PUT"
    assert client.head("/readyz").status_code == 200

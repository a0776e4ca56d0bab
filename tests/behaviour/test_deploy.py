"""deploy, verify and rollback against a real server and registry, and the package as others open it."""

import base64
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fixtures.errors import refuses
from fixtures.live_server import (
    EMBED_IMAGES,
    EMBED_TEXTS,
    FILES,
    IMAGES,
    PAIRS,
    TAMPERED,
    TEXTS,
    TOKEN,
    Server,
    change_answers,
    close,
    copied,
    package,
    trained,
    use,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from clipft_tasks import tracking
from clipft_tasks.contracts.stages import PromoteResult
from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.settings import settings
from clipft_tasks.model.package import read_recorded_answers
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import deploy, promote, rollback, verify

pytestmark = pytest.mark.slow
SPEC = RunSpec.from_flat({"domain": "general"})
NAME = "clipft-general"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = copied(trained(tmp_path_factory.getbasetemp() / "two-versions"), tmp_path_factory.mktemp("deploy") / "home")
    with Server(home) as server:
        yield server.ready()


@pytest.fixture
def server(running: Server, tmp_path: Path) -> Iterator[Server]:
    """Version 1 is champion and live, 2 is challenger, nothing is `previous`; both packages are whole."""
    with pytest.MonkeyPatch.context() as patch:
        use(running.home, patch)
        patch.setenv("CLIPFT_SERVER_URL", running.url)
        patch.setenv("CLIPFT_SERVER_TOKEN", TOKEN)
        settings.cache_clear()
        client = tracking.client()
        client.set_registered_model_alias(NAME, tracking.CHAMPION, "1")
        client.delete_registered_model_alias(NAME, tracking.PREVIOUS)
        shutil.copytree(running.home / "cache" / "models", tmp_path / "kept")
        assert running.put("1").status_code == 200
        yield running
        for folder in (tmp_path / "kept").iterdir():
            if folder.is_dir():
                shutil.rmtree(running.home / "cache" / "models" / folder.name, ignore_errors=True)
                shutil.copytree(folder, running.home / "cache" / "models" / folder.name)
    settings.cache_clear()


def aliased(alias: str) -> str:
    version = tracking.version_by_alias("general", alias)
    return str(version.version) if version else ""


def state(server: Server) -> tuple[str, str, str]:
    """Champion, previous, and the version that answers."""
    answering = server.post(EMBED_TEXTS, {"texts": "who answers?"}).headers["x-clipft-model-version"]
    return aliased(tracking.CHAMPION), aliased(tracking.PREVIOUS), answering


def made_live(version: str) -> PromoteResult:
    promoted = promote.run(SPEC, version)
    deploy.run(SPEC, version, promoted.previous)
    return promoted


def test_a_package_that_was_replaced_since_it_was_registered_is_refused(server):
    """By another one that is whole in itself: its own recorded answers say nothing of that."""
    folder, client = package("2"), tracking.client()
    whole = json.dumps(tracking.digests(folder))
    client.set_model_version_tag(NAME, "2", tracking.DIGESTS, whole)
    try:
        assert package("2") == folder
        for path in package("1").iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        answer = server.put("2")
        assert answer.status_code == 409 and answer.json()["code"] == "package.changed"
        assert "open_clip_model.safetensors" in answer.json()["detail"] and server.live() == {"general": "1"}
    finally:
        client.delete_model_version_tag(NAME, "2", tracking.DIGESTS)


def test_a_registered_version_keeps_the_digests_of_its_package(server):
    run_id = str(tracking.resolve_version(f"models:/{NAME}/1").run_id)
    tags = tracking.digests(tracking.fetch_candidate(run_id))
    try:
        for digests in (tags, {"another": "one"}):  # as a second try of the stage, after somebody replaced a file
            assert not tracking.register("general", run_id, {}, "", digests)[1]
        assert json.loads(tracking.resolve_version(f"models:/{NAME}/1").tags[tracking.DIGESTS]) == tags
        assert {"open_clip_model.safetensors", "card.json", "recorded_answers.json"} <= tags.keys()
    finally:
        tracking.client().delete_model_version_tag(NAME, "1", tracking.DIGESTS)


def test_a_promoted_version_is_deployed_and_verified(server):
    promoted = promote.run(SPEC, "2")
    assert promoted == PromoteResult(version="2", previous="1")
    deployed = deploy.run(SPEC, promoted.version, promoted.previous)
    assert (deployed.version, deployed.replaced) == ("2", "1") and deployed.load_seconds > 0
    verified = verify.run(SPEC, promoted.version, promoted.previous)
    assert verified.version == "2" and verified.pairs == 4 and verified.disagreement < 1e-3
    assert state(server) == ("2", "1", "2")


def test_each_stage_may_run_again(server):
    for _ in range(2):
        promoted = promote.run(SPEC, "2")
        assert promoted == PromoteResult(version="2", previous="1")
        assert deploy.run(SPEC, promoted.version, promoted.previous).version == "2"
        assert verify.run(SPEC, promoted.version, promoted.previous).version == "2"
    assert state(server) == ("2", "1", "2")


@pytest.mark.parametrize(
    "how", ["other recorded answers", "another model's weights", "weights that are no weights", "no recorded answers"]
)
def test_a_version_that_the_server_refuses_gives_the_title_back(server, how):
    promoted = promote.run(SPEC, "2")
    TAMPERED[how](package("2"))
    with pytest.raises(ClipftError, match="general"):
        deploy.run(SPEC, promoted.version, promoted.previous)
    assert state(server) == ("1", "", "1")
    assert tracking.resolve_version(f"models:/{NAME}/2").tags["clipft.deploy"] == "failed"


def test_a_refused_first_champion_leaves_nobody_champion(server):
    tracking.client().delete_registered_model_alias(NAME, tracking.CHAMPION)
    promoted = promote.run(SPEC, "2")
    assert promoted == PromoteResult(version="2", previous="")
    change_answers(package("2"))
    with pytest.raises(ClipftError):
        deploy.run(SPEC, promoted.version, promoted.previous)
    assert state(server) == ("", "", "1")


def test_a_refused_version_does_not_cost_the_version_before_last(server):
    """1 was champion before 2; a third that fails leaves 2 champion and 1 still there to roll back to."""
    made_live("2")
    client = tracking.client()
    second = client.get_model_version(NAME, "2")
    third = str(client.create_model_version(NAME, second.source, second.run_id).version)
    try:
        promoted = promote.run(SPEC, third)
        change_answers(package(third))
        running_version = state(server)[2]
        with pytest.raises(ClipftError):
            deploy.run(SPEC, promoted.version, promoted.previous)
        assert running_version == "2"
        assert state(server) == ("2", "1", "2")
    finally:
        client.delete_model_version(NAME, third)


def test_a_version_that_answers_otherwise_than_recorded_steps_down_and_the_old_one_is_live(server):
    promoted = made_live("2")
    change_answers(package("2"))
    with refuses("deploy.not_verified", "version 2"):
        verify.run(SPEC, promoted.version, promoted.previous)
    assert state(server) == ("1", "", "1")
    assert tracking.resolve_version(f"models:/{NAME}/2").tags["clipft.deploy"] == "failed"


def test_verify_brings_a_server_that_answers_with_another_version_to_the_champion(server):
    promoted = promote.run(SPEC, "2")
    assert state(server) == ("2", "1", "1")
    verify.run(SPEC, promoted.version, promoted.previous)
    assert state(server) == ("2", "1", "2")


def test_a_server_that_is_away_is_transient_and_changes_nothing(server, monkeypatch):
    promoted = promote.run(SPEC, "2")
    monkeypatch.setenv("CLIPFT_SERVER_URL", "http://127.0.0.1:9")
    settings.cache_clear()
    for stage in (deploy, verify):
        with pytest.raises(TransientError, match="does not answer"):
            stage.run(SPEC, promoted.version, promoted.previous)
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    settings.cache_clear()
    assert state(server) == ("2", "1", "1")
    assert deploy.run(SPEC, promoted.version, promoted.previous).replaced == "1"  # what a retry does


@pytest.fixture
def answers_503() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b"busy")

        do_POST = do_PUT

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{stub.server_port}"
        stub.shutdown()


def test_a_server_that_is_busy_is_transient_and_changes_nothing(server, answers_503, monkeypatch):
    promoted = promote.run(SPEC, "2")
    monkeypatch.setenv("CLIPFT_SERVER_URL", answers_503)
    settings.cache_clear()
    for stage in (deploy, verify):
        with pytest.raises(TransientError, match="503"):
            stage.run(SPEC, promoted.version, promoted.previous)
    assert (aliased(tracking.CHAMPION), aliased(tracking.PREVIOUS)) == ("2", "1")


def test_a_wrong_token_is_said_and_the_champion_is_the_version_that_answers(server, monkeypatch):
    promoted = promote.run(SPEC, "2")
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", "wrong")
    settings.cache_clear()
    with pytest.raises(ClipftError, match="token"):
        deploy.run(SPEC, promoted.version, promoted.previous)
    assert state(server) == ("1", "", "1")


# Rollback -----------------------------------------------------------------------------------------------------------


def go_back(version: str = "") -> PromoteResult:
    back = promote.run(SPEC, rollback.run(SPEC, version).version)
    deploy.run(SPEC, back.version, back.previous)
    verify.run(SPEC, back.version, back.previous)
    return back


def test_a_second_rollback_undoes_the_first(server):
    made_live("2")
    assert go_back() == PromoteResult(version="1", previous="2")
    assert state(server) == ("1", "2", "1")
    assert go_back() == PromoteResult(version="2", previous="1")
    assert state(server) == ("2", "1", "2")


def test_a_rollback_may_name_its_version(server):
    made_live("2")
    assert go_back("1") == PromoteResult(version="1", previous="2")
    assert go_back("1").version == "1"  # again: it is there already
    assert state(server) == ("1", "2", "1")


def test_a_rollback_with_nothing_to_go_back_to_says_so(server):
    with refuses("rollback.no_previous", "general"):
        rollback.run(SPEC)
    with refuses("model.not_registered", "99"):
        rollback.run(SPEC, "99")
    assert state(server) == ("1", "", "1")


def test_a_rollback_that_was_cut_between_its_writes_is_finished_by_its_retry(server, monkeypatch):
    made_live("2")
    write = MlflowClient.set_registered_model_alias

    def cut(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if cut.writes == 1:  # type: ignore[attr-defined]
            raise MlflowException("API request to http://registry failed")
        cut.writes += 1  # type: ignore[attr-defined]
        write(self, name, alias, version)

    cut.writes = 0  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", cut)
        with pytest.raises((TransientError, MlflowException)):
            promote.run(SPEC, rollback.run(SPEC).version)
    assert promote.run(SPEC, rollback.run(SPEC).version).version == "1"
    assert aliased(tracking.CHAMPION) == "1"


def test_a_rollback_whose_result_was_lost_does_not_go_forward_again(server):
    made_live("2")
    chosen = rollback.run(SPEC)
    promote.run(SPEC, chosen.version)
    assert promote.run(SPEC, chosen.version).version == "1"
    assert aliased(tracking.CHAMPION) == "1"


# The package elsewhere ----------------------------------------------------------------------------------------------


def test_the_champion_as_an_mlflow_model_answers_as_the_server_does(server):
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    given = model.predict(pd.DataFrame({"image": [p["base64"] for p in IMAGES[:3]], "text": TEXTS}))
    assert close(
        given["image_embedding"].tolist(), np.array(server.post(EMBED_IMAGES, {"images": IMAGES[:3]}).json()["embeddings"])
    )
    assert close(given["text_embedding"].tolist(), np.array(server.post(EMBED_TEXTS, {"texts": TEXTS}).json()["embeddings"]))
    pairs = np.array(server.post(PAIRS, {"images": IMAGES[:3], "texts": TEXTS}).json()["similarity"])
    assert close(given["similarity"].tolist(), pairs.diagonal())


def test_the_mlflow_model_takes_a_column_alone_and_paths(server, tmp_path):
    import mlflow
    import pandas as pd

    (tmp_path / "a.png").write_bytes(FILES[0])
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/1")
    embedded = np.array(server.post(EMBED_IMAGES, {"images": IMAGES[0]}).json()["embeddings"])
    by_path = model.predict(pd.DataFrame({"image": [str(tmp_path / "a.png")]}))
    assert list(by_path) == ["image_embedding"] and close(by_path["image_embedding"].tolist(), embedded)
    assert list(model.predict(pd.DataFrame({"text": TEXTS}))) == ["text_embedding"]


PLAIN = """
import base64, io, json, sys
import open_clip, torch
from PIL import Image
folder = sys.argv[1]
model, _, prepare = open_clip.create_model_and_transforms("local-dir:" + folder)
tokens = open_clip.get_tokenizer("local-dir:" + folder)
model.eval()
recorded = json.load(open(folder + "/recorded_answers.json"))
images = torch.stack([prepare(Image.open(io.BytesIO(base64.b64decode(p)))) for p in recorded["images"]])
with torch.inference_mode():
    image = model.encode_image(images, normalize=True)
    text = model.encode_text(tokens(recorded["texts"]), normalize=True)
assert not [m for m in sys.modules if m.startswith(("clipft", "serving"))]
print(json.dumps((image @ text.T).tolist()))
"""


def test_plain_open_clip_opens_the_package_and_gives_the_recorded_answers(server, tmp_path):
    folder = package("1")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, str(folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    recorded = read_recorded_answers(folder)
    assert len(recorded.images) == 4 and base64.b64decode(recorded.images[0])[:4] == b"\x89PNG"
    assert close(json.loads(done.stdout.splitlines()[-1]), np.array(recorded.similarity))


def test_the_package_holds_no_pickle(server):
    assert sorted(f.suffix for f in package("1").iterdir()) == [".json"] * 6 + [".md"] + [".safetensors"] * 2

"""An installation that an earlier release made is upgraded, serves, learns and goes back, as if it had always been of this one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from fixtures.live_server import Server, b64, use
from fixtures.old_home import OldHome, unpack

from clipft_tasks import tracking
from clipft_tasks.cli import main
from clipft_tasks.contracts.stages import EvaluateResult
from clipft_tasks.core.settings import settings
from clipft_tasks.drift import incident_store
from clipft_tasks.ops import gc
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain
from deploy.compose import secrets

pytestmark = pytest.mark.slow
CLASSES = {"red square", "blue square"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldHome]:
    there = unpack(tmp_path_factory.mktemp("before"))
    with pytest.MonkeyPatch.context() as patch:
        use(there.home, patch)
        yield there
    settings.cache_clear()


def clipft(*words: str) -> Result:
    done = CliRunner().invoke(main, [*words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done


@pytest.fixture(scope="module")
def upgraded(old: OldHome) -> str:
    """What `clipft upgrade` says."""
    return clipft("upgrade").output


@pytest.fixture(scope="module")
def server(old: OldHome, upgraded: str) -> Iterator[Server]:
    with Server(old.home, poll=1) as there:
        yield there.ready()


def shown(server: Server, path: str) -> httpx.Response:
    """What the server shows to who has its token."""
    return server.client.get(path, headers={"Authorization": f"Bearer {server.token}"})


def captured(home: Path) -> list[Path]:
    return sorted((home / "captures" / "general").iterdir())


def test_an_upgrade_renames_what_has_another_name_and_says_what_is_left_to_do(old, upgraded):
    assert "3 captured images are called .image now" in upgraded
    assert "clipft_care was on" in upgraded and "switch clipft_maintenance on" in upgraded
    assert {p.suffix for p in captured(old.home)} == {".image", ".json"} and len(captured(old.home)) == 6
    assert "captured images" not in clipft("upgrade").output  # once


def test_the_champion_is_served_and_what_was_captured_is_there(server):
    assert server.live() == {"general": "1"}
    kept = shown(server, "/v1/captures/general").json()
    assert sorted(c["label"] for c in kept) == ["", "", "red square"]
    for capture in kept:
        image = shown(server, f"/v1/captures/general/{capture['id']}").content
        assert image.startswith(b"\x89PNG")
    answer = server.post("/v1/classify", {"domain": "general", "images": [b64(image)]}).json()
    assert {p["label"] for p in answer["predictions"]} <= CLASSES


def test_a_server_that_starts_before_the_upgrade_finds_the_captures_too(tmp_path):
    there = unpack(tmp_path)
    with Server(there.home) as server:
        assert len(shown(server, "/v1/captures/general").json()) == 3
    assert {p.suffix for p in captured(there.home)} == {".image", ".json"}


def test_the_open_incident_is_known(old, upgraded, server, monkeypatch):
    state = incident_store.load("general")
    assert state.incident and state.incident.version == "1" and state.incident.signals == ["image", "brightness"]
    assert state.incident.run == "clipft_drift_watch/manual__1"
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    settings.cache_clear()
    try:
        assert "Being handled since" in clipft("drift", "general").output
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_it_learns_on_from_the_old_champion_on_old_rows_and_new_labels_and_goes_back(old, upgraded, server, monkeypatch):
    monkeypatch.setenv("CLIPFT_SERVER_URL", server.url)
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", server.token)
    settings.cache_clear()
    try:
        flat = old.spec | {"source": "captures:general", "model.start": "champion", "tune.trials": 0}
        spec, done = RunSpec.from_flat(flat), dict[str, Any]()
        for name in chain.stages_of(spec):
            done[name] = chain.run_stage(name, spec, done.__getitem__)
        assert done["version"]["dataset"] == "general/v2" and done["verify"]["version"] == "2"
        [evaluated] = EvaluateResult.model_validate(done["evaluate"]).evaluations
        assert evaluated.roles == ["start", "champion", "candidate"]
        server.until(lambda: server.live() == {"general": "2"}, 60)

        assert "Comparison" in clipft("compare", "general@champion", "general@previous", "--unpaired").output
        clipft("rollback", "--domain", "general")
        assert server.live() == {"general": "1"} and tracking.champions() == {"general": "1"}
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_work_of_an_earlier_recipe_is_done_once_more_and_is_found_from_then_on(old, upgraded):
    [results] = (old.home / "runs").iterdir()
    flat = {k: v for k, v in old.spec.items() if k != "source"} | {"dataset": "general/v1"}
    spec, tries = RunSpec.from_flat(flat), [json.loads((results / "finetune.json").read_text())]
    for _ in range(2):
        done = dict[str, Any]()
        for name in ("plan", "tune", "finetune", "blend"):
            done[name] = chain.run_stage(name, spec, done.__getitem__)
        tries.append(done["finetune"] | {"study": done["tune"]["study"], "blended": done["blend"]["run_id"]})
    before, first, again = tries
    assert first["run_id"] != before["run_id"]  # it trains otherwise than the release before
    assert again["done_before"] and again["run_id"] == first["run_id"]
    assert (again["study"], again["blended"]) == (first["study"], first["blended"])


def test_results_of_stages_run_by_hand_are_read(old, upgraded):
    [results] = (old.home / "runs").iterdir()
    options = [
        f"--{key}={','.join(map(str, v)) if isinstance(v, list) else v}" for key, v in old.spec.items() if key != "gate.rules"
    ]
    done = CliRunner().invoke(
        main, ["gate", *options, "--gate.rules", "; ".join(old.spec["gate.rules"]), f"--results={results}"]
    )
    assert done.exit_code == 0 and json.loads(done.stdout[done.stdout.index("{") :])["passed"], done.output


def test_it_is_backed_up_and_cleared(old, upgraded, tmp_path):
    clipft("backup", str(tmp_path / "backup"))
    assert "is whole" in clipft("backup", "--verify", str(tmp_path / "backup")).output
    assert len(list((tmp_path / "backup" / "captures").rglob("*.image"))) == 3
    assert gc.find().items == []


def test_a_worker_stays_joined_and_a_teams_settings_keep_their_values(old, upgraded):
    from clipft_tasks.worker.membership import Membership

    member = Membership.read()
    assert (member.name, member.secret, member.queue) == ("studio", "a-secret", "cpu")
    assert member.addresses["studies"].endswith("/gateway/v1/studies")
    before = dict(line.split("=", 1) for line in old.env.read_text().splitlines() if "=" in line)
    secrets.write(old.env, "localhost", False)
    now = dict(line.split("=", 1) for line in old.env.read_text().splitlines() if "=" in line)
    assert now["CLIPFT_GATEWAY_TOKEN"] == before["CLIPFT_DOOR_TOKEN"] and not [name for name in now if "DOOR" in name]
    assert before.items() - now.items() == {(k, v) for k, v in before.items() if "DOOR" in k}

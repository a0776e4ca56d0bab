"""Another kind of image arrives at the running stack: it is seen, explained, approved, learned, and nothing is forgotten."""

import base64
import json
import time

import httpx
import pytest

from clipft_tasks.core.settings import settings
from e2e.conftest import call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def share_of_captures(share: float | None) -> float | None:
    """Set which share of the traffic is kept; what it was before."""
    token = settings().server_token.get_secret_value()
    url = f"{settings().server_url}/v1/captures/industrial"
    return httpx.put(url, json={"share": share}, headers={"Authorization": f"Bearer {token}"}).json()["before"]


@pytest.fixture(scope="module")
def drifted(demo):
    """`make demo-drift` on the demo's installation; its summary."""
    done = call("deploy.local.stack", "up", seconds=600)  # an earlier test may have stopped it
    assert done.returncode == 0, done.stdout[-3000:]
    share_of_captures(None)
    done = call("examples.demo_drift", seconds=1500)
    assert done.returncode == 0, done.stdout[-6000:]
    return json.loads((settings().root / "demo" / "drift.json").read_text())


def test_the_new_kind_is_learned_and_the_old_one_is_not_forgotten(drifted):
    before, during, after = (drifted["scores"][when] for when in ("before", "during", "after"))
    assert after["poly"] > during["poly"] + 0.15
    assert after["mono"] > before["mono"] - 0.1
    assert drifted["versions"]["after"] != drifted["versions"]["before"] and drifted["outcome"] == "probation"


def test_no_request_failed_while_models_were_swapped(drifted):
    assert drifted["failed_requests"] == 0 and drifted["requests_under_load"] > 10


def test_the_suggestion_says_what_it_was_and_what_it_rests_on(drifted):
    suggestion = drifted["suggestion"]
    assert suggestion["action"] == "readapt" and sum(suggestion["labels"].values()) >= 40
    assert drifted["requests_until_drift"] and drifted["seconds"]["drift_to_run"] is not None


def test_the_new_versions_window_starts_on_its_own_reference(drifted):
    seen = httpx.get(f"{settings().server_url}/v1/drift/industrial", timeout=30).json()
    assert seen["version"] == drifted["versions"]["after"] and not any(ratio > 1 for ratio in seen["drift"].values())


def test_the_new_version_is_on_probation_beside_the_one_that_saw_the_drift(drifted):
    from clipft_tasks.drift import incident_store

    state = incident_store.load("industrial")
    assert state.incident and state.incident.on_probation and state.failures == 0 and not state.breaker_opened
    probation = state.incident.probation
    assert (probation.version, probation.previous) == (drifted["versions"]["after"], drifted["versions"]["before"])
    assert probation.judged >= 64 and 0 < probation.accuracy < 1


def test_images_are_kept_as_before(drifted):
    assert share_of_captures(None) is None


def test_the_data_set_says_where_its_rows_come_from(drifted):
    from clipft_tasks.data import versioning

    card = versioning.find("", "industrial").card
    assert card.source == "captures:industrial" and card.parents == ["industrial/v1"]


def test_the_page_of_models_needs_a_login_and_shows_what_happened(drifted):
    from deploy.local.environment import address, airflow_client

    for path in ("/clipft/models", "/clipft/models.json"):
        assert httpx.get(address("airflow") + path, timeout=30).status_code == 401
    shown = airflow_client().raw("GET", "/clipft/models.json").json()
    industrial = next(d for d in shown["domains"] if d["name"] == "industrial")
    assert industrial["versions"]["champion"]["number"] == drifted["versions"]["after"]
    assert industrial["probation"] == drifted["versions"]["after"] and shown["problems"] == []


def test_alertmanagers_message_is_refused_without_its_token(drifted):
    from deploy.local.environment import address

    assert httpx.post(f"{address('airflow')}/clipft/alerts", json={"alerts": []}, timeout=30).status_code == 401


def test_every_query_of_the_dashboards_finds_metrics(drifted):
    from deploy.grafana.dashboards import MODEL, PIPELINE, SERVICE
    from deploy.local.environment import address

    _captions()
    asked = {query for _, _, queries in SERVICE + MODEL + PIPELINE for query, _ in queries}
    until, empty = time.monotonic() + 60, asked
    while empty and time.monotonic() < until:
        now, still = time.time(), set()
        for query in empty:
            span = {"query": query, "start": now - 3600, "end": now, "step": 15}
            found = httpx.get(f"{address('prometheus')}/api/v1/query_range", params=span, timeout=30).json()
            assert found["status"] == "success", (query, found)
            if not found["data"]["result"]:
                still.add(query)
        empty = {query for query in still if "refused" not in query and "side_effect" not in query}
        time.sleep(2 if empty else 0)
    assert not empty


def _captions() -> None:
    """Images with a text of their own, which the demo does not send: enough for a window to speak of them."""
    from clipft_tasks.data import versioning

    data = versioning.fetch(versioning.find("", "industrial"))
    rows = data.split("test").head(64)
    images = [{"base64": base64.b64encode(data.image_bytes(row)).decode()} for row in rows.itertuples()]
    body = {"domain": "industrial", "images": images, "texts": rows["caption"].tolist(), "paired": True}
    httpx.post(f"{settings().server_url}/v1/similarity", json=body, timeout=120).raise_for_status()

"""From a fresh installation to a served model, through the real Airflow, and once more."""

import json
import time
import urllib.request

import httpx
import pytest

from clipft_tasks import tracking
from clipft_tasks.core.settings import settings
from e2e.conftest import call

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_the_demo_ends_with_one_screen_and_a_better_model(demo):
    summary = json.loads((settings().root / "demo" / "summary.json").read_text())
    for size, who in summary["scores"].items():
        assert who["candidate"]["value"] >= who["start"]["value"] + 0.15, size
        assert who["candidate"]["low"] <= who["candidate"]["value"] <= who["candidate"]["high"]
    assert summary["data"]["version"] == "industrial/v1" and summary["data"]["new"]
    assert summary["answer"]["model_version"] == summary["version"] == "1"
    assert summary["data"]["license"].startswith("CC-BY-NC-SA-4.0")
    for shown in ("Airflow", "MLflow", "Data report", "Server", "password"):
        assert shown in demo


def test_the_demo_again_makes_nothing_new_and_says_why_it_was_quick(demo):
    done = call("examples.demo", seconds=900)
    assert done.returncode == 0, done.stdout[-4000:]
    summary = json.loads((settings().root / "demo" / "summary.json").read_text())
    assert summary["trained_before"] and not summary["data"]["new"]
    assert summary["data"]["version"] == "industrial/v1"
    assert [str(v.version) for v in tracking.client().search_model_versions("name = 'clipft-industrial'")] == ["1"]
    assert "This work was done before" in done.stdout and "nothing to push" in done.stdout


def test_links_lead_from_tasks_to_what_they_made(demo, installation):
    airflow = installation.airflow_client()
    run = airflow.call("GET", "/dags/clipft_finetune/dagRuns?limit=1")["dag_runs"][0]["dag_run_id"]
    links = airflow.call("GET", f"/dags/clipft_finetune/dagRuns/{run}/taskInstances/finetune/links")["extra_links"]
    assert links["MLflow run"].startswith(settings().mlflow_ui)
    assert httpx.get(links["MLflow run"].split("#")[0], timeout=30).status_code == 200


def test_prometheus_scrapes_the_server(demo, installation):
    if "not running" in call("deploy.local.stack", "status", seconds=60).stdout:
        pytest.skip("no Prometheus on this machine")
    query = f"{installation.address('prometheus')}/api/v1/query?query=clipft_model_info"
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = json.load(urllib.request.urlopen(query))["data"]["result"]
        if found:
            break
        time.sleep(1)
    assert found[0]["metric"]["domain"] == "industrial"

"""`clipft ops chaos`: processes of every kind are killed and the power is cut while the stack works, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.conftest import PROJECT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]


@pytest.mark.parametrize(("kills", "power_cuts", "seed"), [(3, 1, 190), (20, 5, 0)], ids=["short", "long"])
def test_whatever_is_killed_every_run_ends_as_an_undisturbed_one(tmp_path: Path, kills: int, power_cuts: int, seed: int):
    asked = [sys.executable, "-m", "clipft_tasks.cli", "ops", "chaos", "--kills", str(kills), "--power-cuts", str(power_cuts)]
    asked += ["--seed", str(seed), "--folder", str(tmp_path / "chaos"), "--report", str(tmp_path / "report.json")]
    done = subprocess.run(asked, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["strikes"]) == kills + power_cuts and not report["problems"]
    assert {run["state"] for run in report["runs"]} <= {"success", "failed"} and report["runs"][-1]["state"] == "success"
    whole = {"clipft_dataset", "clipft_finetune", "clipft_rollback", "clipft_drift_watch", "clipft_readapt"}
    assert {run["dag"] for run in report["runs"] if run["state"] == "success"} == whole
    struck = [strike["hit"] for strike in report["strikes"] if "no process of it" not in strike["hit"]]
    assert len(struck) >= 0.8 * len(report["strikes"]), report["strikes"]

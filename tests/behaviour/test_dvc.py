"""`dvc repro` runs the same stages without Airflow, and `dvc metrics` and `dvc plots` show what came of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import small

from clipft_tasks.cli import main
from clipft_tasks.spec import RunSpec

PROJECT = Path(__file__).resolve().parents[2]


def test_repro_runs_the_chain_and_again_only_what_changed(home, table, tiny, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(PROJECT / ".dvc", work / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    shutil.copyfile(PROJECT / "dvc.yaml", work / "dvc.yaml")
    spec = RunSpec.from_flat(small(table, tiny)).model_dump(mode="json")
    (work / "params.yaml").write_text(yaml.safe_dump(spec))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run("git", "init", "--quiet")
    run("dvc", "repro")
    shown = json.loads(run("dvc", "metrics", "show", "--json"))
    metrics = next(iter(shown.values()))["data"]["results/metrics.json"]["data"]
    assert set(metrics) == {"start", "candidate"} and set(metrics["candidate"]) == {"32", "48"}
    plots = json.loads(run("dvc", "plots", "show", "--json", "--split"))
    assert any("resolutions" in name for name in plots.get("data", plots))

    spec["evaluate"]["bootstrap"] = 150
    (work / "params.yaml").write_text(yaml.safe_dump(spec))
    told = run("dvc", "repro")
    assert "Running stage 'evaluate'" in told and "Running stage 'finetune'" not in told


def test_the_pipeline_is_made_of_the_stages_as_they_are_declared():
    said = CliRunner().invoke(main, ["stages", "--dvc"], catch_exceptions=False).output
    assert (PROJECT / "dvc.yaml").read_text() == said, "make it again: clipft stages --dvc > dvc.yaml"


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_the_files_of_the_pipeline_belong_together(name):
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    assert RunSpec.model_validate(params).source == "elpv:mono"
    if name == "dvc.yaml":
        for stage in yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"].values():
            for param in stage.get("params", []):
                section, _, leaf = param.partition(".")
                assert section in params and (not leaf or leaf in params[section]), param

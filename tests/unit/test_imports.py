"""A command imports what it needs: nobody waits for PyTorch to be told what there is, or to have data taken in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import a_plan, write_images

from clipft_tasks.contracts.stages import PlanResult

PROJECT = Path(__file__).resolve().parents[2]
LIBRARIES = {
    "torch",
    "open_clip",
    "transformers",
    "mlflow",
    "great_expectations",
    "dvc",
    "pandas",
    "sklearn",
    "optuna",
    "matplotlib",
}
DATA = {"dvc", "pandas"}

LOOK = """
import json, sys
from click.testing import CliRunner

def said(what):
    print("RESULT" + json.dumps([what, sorted(set(json.loads(sys.argv[1])) & set(sys.modules))]))

from clipft_tasks.cli import main
for command in (["--help"], ["finetune", "--help"], ["spec", "--domain", "general"]):
    assert CliRunner().invoke(main, command).exit_code == 0
said("the command line")
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain
spec, done = RunSpec.from_flat({"domain": "general", "source": sys.argv[2]}), {"plan": json.loads(sys.argv[3]), "validate": {}, "finetune": {"run_id": ""}}
for stage in ("ingest", "version", "tune", "blend"):  # the last two are off
    done[stage] = chain.run_stage(stage, spec, done.__getitem__)
    said(stage)
from clipft_tasks import tracking
from clipft_tasks.evaluate import report
from clipft_tasks.model import recorded_answers
from clipft_tasks.spec import metric_catalog
said("gate, register, promote, deploy, verify")
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What is there after each, in a process that does one after the other."""
    folder = tmp_path_factory.mktemp("imports")
    table = write_images(folder / "source", 12)
    planned = PlanResult(dataset="general/v1", start="starter", digest="", temperature=0.07, plan=a_plan())
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLIPFT_")} | {"CLIPFT_HOME": str(folder / "home")}
    command = [sys.executable, "-c", LOOK, json.dumps(sorted(LIBRARIES)), str(table), json.dumps(planned.to_json())]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "git add" not in done.stdout  # DVC keeps its advice to itself
    found = dict(json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return {what: set(names) for what, names in found.items()}


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        ("the command line", set()),
        ("ingest", DATA),
        ("version", DATA),
        ("tune", DATA),
        ("blend", DATA),
        ("gate, register, promote, deploy, verify", DATA | {"mlflow"}),
    ],
)
def test_nothing_is_imported_that_is_not_needed(imported, what, allowed):
    assert imported[what] <= allowed

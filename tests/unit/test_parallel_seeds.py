"""Benches in lanes: what was found is kept, and no run begins that would not end in time."""

import json

import pytest

from bench.parallel_seeds import KeptRuns, Lanes

MODULE = """
import json, os, sys
ask = json.loads(sys.argv[-1])
with open(os.environ["SEEN"], "a") as file:
    file.write(f"{ask['seed']}\\n")
print("other output")
print(json.dumps({"score": ask["seed"] / 10, "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}))
"""


@pytest.fixture
def seen(tmp_path, monkeypatch):
    (tmp_path / "made_bench.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    (tmp_path / "seen").touch()
    return lambda: sorted((tmp_path / "seen").read_text().split())


def test_a_run_that_is_kept_is_not_made_again(tmp_path, seen):
    kept = tmp_path / "runs.jsonl"
    first = Lanes("made_bench", 1, kept).run([{"seed": 1}, {"seed": 2}])
    assert [run["score"] for run in first] == [0.1, 0.2] and first[0]["gpus"] == ""
    again = Lanes("made_bench", 1, kept).run([{"seed": 2}, {"seed": 3}, {"seed": 1}])
    assert [run["score"] for run in again] == [0.2, 0.3, 0.1]
    assert seen() == ["1", "2", "3"]


def test_no_run_begins_that_would_end_after_the_time(tmp_path, seen):
    kept = tmp_path / "runs.jsonl"
    KeptRuns(kept).add({"seed": 1}, {"score": 0.1}, seconds=61)
    with pytest.raises(SystemExit, match="1 of 2 runs are there"):
        Lanes("made_bench", 1, kept, minutes=1).run([{"seed": 1}, {"seed": 2}])
    assert seen() == []
    assert json.loads(kept.read_text())["ask"] == {"seed": 1}
    Lanes("made_bench", 1, kept, minutes=2).run([{"seed": 1}, {"seed": 2}])
    assert seen() == ["2"]

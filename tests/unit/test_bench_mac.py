"""What the first person with a Mac runs: short here, on the stand-in for MPS and on the CPU."""

import json
from pathlib import Path

import pytest
from fixtures.strict_mps import StrictMps

from bench.mac import __main__ as kit
from bench.mac import measure, page

SHORT = ["environment", "temperatures", "operators", "parity", "temperatures afterwards"]


@pytest.mark.slow
def test_it_writes_one_record_and_one_page_that_says_what_to_send(tmp_path, capsys):
    with StrictMps() as mps:
        written = kit.main(["--quick", "--device", "mps", "--out", str(tmp_path), "--only", *SHORT])
    assert mps.refusals == [] and written.name.startswith("mps-")
    record = json.loads(written.with_suffix(".json").read_text())
    assert list(record["sections"]) == SHORT and record["quick"]
    assert not [name for name, facts in record["sections"].items() if "failed" in facts], record["sections"]
    parity = record["sections"]["parity"]
    assert parity["fused AdamW clips and skips by itself"]
    assert all(parity[name] <= most for name, most in page.PARITY.items())
    assert record["sections"]["operators"]["without_declared_kernel"] == []
    said = written.read_text()
    assert f"Send `{written.stem}.json`" in said and "## Parity" in said and "nothing out of the ordinary" in said
    assert str(Path.home()) not in said.replace("/root/", "") or Path.home() == Path("/root")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["page"] == str(written)


def test_a_section_that_fails_says_so_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(kit):
        raise NotImplementedError(f"aten::thing on mps, in {Path.home()}/secret and {kit.folder}")

    monkeypatch.setitem(kit.SECTIONS, "parity", broken)
    written = kit.main(["--quick", "--device", "cpu", "--out", str(tmp_path), "--only", "parity", "temperatures"])
    failed = json.loads(written.with_suffix(".json").read_text())["sections"]["parity"]["failed"]
    assert failed.startswith("NotImplementedError in test_bench_mac.py:") and "<tmp>" in failed and "~/secret" in failed
    assert "**parity** failed" in written.read_text()


def test_the_time_is_kept(monkeypatch):
    monkeypatch.setattr(kit, "MOST_SECONDS", -1)
    found, _ = kit.run(kit.Kit("cpu", True, Path()), ["temperatures"])
    assert found == {"temperatures": {"passed over": "the time is up"}}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"parity": {"chunked attention": 0.01}}, "gradients, chunked attention: off by 0.01"),
        ({"parity": {"fp16": float("nan")}}, "off by nan"),
        ({"operators": {"without_declared_kernel": ["linalg_eig"]}}, "linalg_eig"),
        ({"parity": {"fused AdamW clips and skips by itself": False}}, "does not skip"),
        ({"precision": {"bf16 image step": 0.4}}, "bf16 steps are 0.40 times"),
        (
            {"speed": {"128 px, pairs a second": 100.0}, "speed again": {"128 px, pairs a second": 80.0}},
            "100.0 at first, 80.0 in the end",
        ),
        ({"suite": {"ended": "1 failed", "failed": ["FAILED x"]}}, "FAILED x"),
        ({"speed": {"128 px, pairs a second": 100.0}, "speed again": {"128 px, pairs a second": 99.0}}, ""),
    ],
)
def test_what_is_worth_a_look(facts, said):
    found = page.findings(facts)
    assert any(said in line for line in found) if said else found == []


@pytest.mark.slow
def test_the_whole_of_it_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "SUITE", ("test_attention.py::test_dropout_draws_the_same_numbers_in_both_passes",))
    written = kit.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    record = json.loads(written.with_suffix(".json").read_text())
    assert not [facts for facts in record["sections"].values() if facts.get("failed")], record["sections"]
    assert record["sections"]["suite"]["ended"].startswith("..")
    assert record["sections"]["serving"]["8 clients, errors"] == 0
    assert record["sections"]["speed"]["64 px, pairs a second"] > 0

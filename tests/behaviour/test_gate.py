"""The gate on a real evaluation: its verdict is kept with the run, whichever way it went."""

import pytest
from fixtures.errors import refuses
from fixtures.live_server import copied, spec, trained, use

from clipft_tasks import tracking
from clipft_tasks.contracts.gate import GateVerdict
from clipft_tasks.core.settings import settings
from clipft_tasks.evaluate import artifacts
from clipft_tasks.spec import RunSpec
from clipft_tasks.spec.metric_catalog import METRICS
from clipft_tasks.stages import evaluate, gate


@pytest.fixture(scope="module")
def judged(base, tmp_path_factory):
    """Judge version 2 by some rules, in a registry of this module's own; returns the verdict."""
    home = copied(trained(base), tmp_path_factory.mktemp("gate") / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)
        run_id = str(tracking.resolve_version("models:/clipft-general/2").run_id)
        evaluated = artifacts.load(run_id, 32)

        def judge(*rules: str):
            wanted = spec(base, 1)
            return gate.run(RunSpec.from_flat(wanted.flat() | {"gate.rules": list(rules)}), run_id, [evaluated])

        judge.run_id, judge.evaluated, judge.wanted = run_id, evaluated, spec(base, 1)
        yield judge
    settings.cache_clear()


def test_a_verdict_is_a_table_that_is_kept_with_the_run(judged):
    rules = ["gain(score) >= -1", "score at every size >= 0.5", "gain(score) on old >= -0.03"]
    verdict = judged(*rules)
    models = judged.evaluated.models
    candidate, champion = (models[role].intervals["balanced_accuracy"].value for role in ("candidate", "champion"))
    assert [v.rule for v in verdict.rules] == rules and verdict.opponent == "1"
    assert [v.measured for v in verdict.rules] == [pytest.approx(candidate - champion), pytest.approx(candidate), None]
    kept = GateVerdict.from_json(tracking.load_json_artifact(judged.run_id, "gate.json"))
    assert kept == verdict and kept.passed
    # The same text stands in the approval form, in the version's description and in the run.
    assert verdict.table.startswith("| rule | measured | limit | pass |")
    assert all(f"| {rule} |" in verdict.table for rule in rules) and "| candidate |" in verdict.table
    assert tracking.client().get_run(judged.run_id).data.tags["clipft.gate"] == "passed"


def test_where_the_champion_changed_between_two_sizes_what_is_older_is_evaluated_again(judged, monkeypatch):
    again = []

    def evaluated(spec: RunSpec, run_id: str, size: int):
        again.append((run_id, size))
        return judged.evaluated.model_copy(update={"size": size})

    monkeypatch.setattr(evaluate, "run", evaluated)
    before = judged.evaluated.model_copy(update={"size": 16, "opponent": "0"})
    wanted = RunSpec.from_flat(judged.wanted.flat() | {"gate.rules": ["gain(score) >= -1"]})
    verdict = gate.run(wanted, judged.run_id, [before, judged.evaluated])
    assert verdict.passed and verdict.opponent == "1" and sorted(verdict.scores) == [16, 32]
    assert again == [(judged.run_id, 16), (judged.run_id, 32)]


def test_one_rule_that_fails_stops_the_candidate_and_says_which(judged):
    with refuses("gate.not_passed", "`gain(score) > 0.9` measured", "at 32 px"):
        judged("gain(score) >= -1", "gain(score) > 0.9")
    assert [v["passed"] for v in tracking.load_json_artifact(judged.run_id, "gate.json")["rules"]] == [True, False]
    assert tracking.client().get_run(judged.run_id).data.tags["clipft.gate"] == "failed"


def test_a_rule_about_what_was_not_evaluated_is_answered_with_what_was(judged):
    with refuses("gate.not_evaluated", "`linear_probe_accuracy`", "32 px", "balanced_accuracy"):
        judged("linear_probe_accuracy >= 0.5")
    with refuses("gate.unknown_slice", "`polly`"):
        judged("gain(score) on polly >= 0")


def test_every_metric_of_an_evaluation_can_stand_in_a_rule(judged):
    found = judged.evaluated.values("candidate")
    assert found and set(found) <= set(METRICS)

"""The stages by hand, from a table to a registered champion, without a server."""

import pytest

from clipft_tasks import tracking
from clipft_tasks.model.package import read_card, read_learned
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain
from clipft_tasks.train import few_shot


@pytest.fixture
def results():
    return {}


def go(spec: RunSpec, results: dict, last: str) -> dict:
    for name in chain.CHAIN:
        results[name] = chain.run_stage(name, spec, results.__getitem__)
        if name == last:
            return results[name]
    raise AssertionError(last)


def test_a_run_ends_with_a_champion_and_again_with_the_same(home, small_spec, results):
    promoted = go(small_spec, results, "promote")
    assert (promoted["version"], promoted["previous"]) == ("1", "")
    assert results["version"]["dataset"] == "general/v1"
    assert [e["size"] for e in results["evaluate"]["evaluations"]] == [32, 48]
    gain = results["evaluate"]["evaluations"][0]["gains"]["start"]
    assert gain["value"] > 0.15 and gain["low"] <= gain["value"] <= gain["high"]

    again: dict = {}
    promoted = go(small_spec, again, "promote")
    assert (promoted["version"], promoted["previous"]) == ("1", "")
    assert again["version"] == results["version"] | {"new": False, "pushed_bytes": 0}
    assert again["finetune"]["done_before"] and again["finetune"]["run_id"] == results["finetune"]["run_id"]
    assert not again["register"]["new"]
    assert again["evaluate"] == results["evaluate"]


def test_a_few_shot_run_ends_with_a_champion_and_again_with_the_same(home, small_spec, results, monkeypatch):
    """Nothing trains: the classes are fitted, and evaluation, gate and registry take them from the package."""
    monkeypatch.setattr(few_shot, "MOST_PAIRS", 0)
    spec = RunSpec.from_flat(small_spec.flat() | {"train.method": "few_shot"})
    promoted = go(spec, results, "promote")
    assert (promoted["version"], promoted["previous"]) == ("1", "") and results["finetune"]["steps"] == 0
    package = tracking.fetch_candidate(results["finetune"]["run_id"])
    card = read_card(package)
    assert card.few_shot is not None and card.few_shot.folds and read_learned(package).keys() == set(card.classes)
    assert all(e["gains"]["start"]["value"] > 0.15 for e in results["evaluate"]["evaluations"])
    assert tracking.load_json_artifact(results["finetune"]["run_id"], "few_shot.json") == card.few_shot.to_json()

    again: dict = {}
    assert go(spec, again, "promote")["version"] == "1" and again["finetune"]["done_before"]

"""The stages by hand, from a table to a registered champion, without a server."""

import pytest

from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain


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

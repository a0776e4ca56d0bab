"""What `clipft ops chaos` strikes and when is its seed's; what it compares, it tells apart."""

from collections import Counter

from clipft_tasks import tracking
from clipft_tasks.ops.chaos import made, state
from clipft_tasks.ops.chaos.strikes import BRIEF, DURING, KINDS, LONGEST, ONCE, OTHERS, POWER, TASK, WHOLE, draw


def test_a_seed_strikes_the_same_and_every_kind_before_any_twice():
    drawn = draw(0, 20, 5, 5)
    assert drawn == draw(0, 20, 5, 5) != draw(1, 20, 5, 5)
    kinds = Counter(strike.kind for strike in drawn)
    assert kinds.pop(POWER) == 5 and kinds.keys() == set(KINDS) and max(kinds.values()) == 2
    assert {strike.round for strike in drawn} == {1, 2, 3, 4, 5}
    assert all(s.delay <= (BRIEF if s.kind == TASK else LONGEST) for s in drawn if s.dag not in ONCE or s.task not in OTHERS)
    assert all(strike.delay <= WHOLE for strike in drawn)


def test_every_part_of_the_loop_is_struck_where_it_runs():
    drawn = draw(0, 200, 0, 5)
    assert {(s.dag, s.task) for s in drawn} == {(dag, task) for dag, tasks in DURING.items() for task in tasks}
    assert {s.round for s in drawn if s.dag in ONCE} == {5}
    assert {s.round for s in drawn if s.dag == "clipft_rollback"} == {2, 3, 4, 5}  # of the first nothing goes back
    assert {s.round for s in draw(0, 40, 0, 2) if s.dag == "clipft_dataset"} == {1, 2}


def test_what_is_otherwise_than_undisturbed_is_said_by_name():
    expected = {"runs": [["FINISHED"]], "models": {"1": {"aliases": []}, "2": {"aliases": ["champion"]}}}
    assert state.differences(expected, expected) == []
    found = {"runs": [["FINISHED", "RUNNING"]], "models": {"1": {"aliases": ["champion"]}}}
    said = state.differences(expected, found)
    assert len(said) == 3 and "RUNNING" in said[0] and said[1].startswith("models, 1:") and "null instead of" in said[2]


def test_of_a_readaptation_comes_one_of_each_and_nothing_else_changes():
    before = {
        "data sets": {"squares/v1": "a"},
        "runs": [["FINISHED"]],
        "models": {"1": {"aliases": ["champion"]}},
        "metrics": {"1": {"train.loss": [[1, 0.5]]}},
    }
    after = {
        "data sets": {"squares/v1": "a", "squares/v2": "b"},
        "runs": [["FINISHED"], ["FINISHED"]],
        "models": {"1": {"aliases": ["previous"]}, "2": {"aliases": ["champion"]}},
        "metrics": {"1": {"train.loss": [[1, 0.5]]}, "2": {"train.loss": [[1, 0.5], [2, 0.4]]}},
    }
    assert state.not_readapted(before, after) == []
    spoiled = [
        after | {"data sets": after["data sets"] | {"squares/v3": "c"}},
        after | {"data sets": {"squares/v1": "changed", "squares/v2": "b"}},
        after | {"runs": [["FINISHED"], ["FINISHED", "RUNNING"]]},
        after | {"runs": [["FINISHED"]]},
        after | {"models": {"1": {"aliases": ["champion"]}, "2": {"aliases": []}}},
        after | {"metrics": {"1": {}, "2": {}}},
        after | {"metrics": after["metrics"] | {"2": {"train.loss": [[1, 0.5], [2, 0.4], [2, 0.3]]}}},
    ]
    assert [len(state.not_readapted(before, wrong)) for wrong in spoiled] == [1] * len(spoiled)


def test_what_an_installation_holds_is_read_with_the_aliases_of_its_versions(home):
    client, name = tracking.client(), tracking.model_name(made.DOMAIN)
    client.create_registered_model(name)
    experiment = tracking.get_or_create_experiment(f"clipft-{made.DOMAIN}")
    for number in ("1", "2"):
        run = client.create_run(experiment, tags={"clipft.key": number})
        client.log_metric(run.info.run_id, "train.loss", 0.5, step=1)
        client.set_terminated(run.info.run_id)
        client.create_model_version(name, "file:///nowhere", run.info.run_id, tags={"clipft.deploy": "verified"})
    client.set_registered_model_alias(name, "champion", "2")
    client.set_registered_model_alias(name, "previous", "1")
    found = state.found()
    assert found["models"] == {
        "1": {"tags": ["clipft.deploy"], "aliases": ["previous"]},
        "2": {"tags": ["clipft.deploy"], "aliases": ["champion"]},
    }
    assert found["runs"] == [["FINISHED"], ["FINISHED"]] and found["metrics"]["1"] == {"train.loss": [[1, 0.5]]}

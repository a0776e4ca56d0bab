"""Comparison of real runs in a real MLflow: what is tested, what is refused, and what happens when a run disappears."""

import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import small, write_images
from fixtures.errors import refuses
from fixtures.live_server import copied, trained, use

from clipft_tasks import tracking
from clipft_tasks.cli.main import main
from clipft_tasks.contracts.comparison import ModelComparison
from clipft_tasks.contracts.stages import CompareResult
from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.settings import settings
from clipft_tasks.evaluate import zero_shot
from clipft_tasks.spec import RunSpec
from clipft_tasks.stages import chain, compare

SPEC = RunSpec.from_flat({"evaluate.bootstrap": 200, "memory.device": "cpu"})
ONE, TWO = "models:/clipft-general/1", "models:/clipft-general/2"


def pointed(home: Path, base: Path, patch: pytest.MonkeyPatch) -> None:
    use(home, patch)
    patch.setenv("CLIPFT_DATA_REPO", str(base / "home" / "datasets"))
    patch.setenv("CLIPFT_DVC_REMOTE", str(base / "home" / "dvc-remote"))
    settings.cache_clear()


@pytest.fixture
def registry(base: Path, tmp_path: Path) -> Iterator[Path]:
    """A registry of its own with versions 1 (champion) and 2 (challenger), both trained on general/v1."""
    home = copied(trained(base), tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        pointed(home, base, patch)
        yield home
    settings.cache_clear()


@pytest.fixture(scope="module")
def grown(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with a third model, of a data set that grew since; its run id."""
    folder = tmp_path_factory.mktemp("grown")
    home = copied(trained(base), folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        use(home, patch)  # its data sets are its own: others go on seeing general/v1 only
        spec = RunSpec.from_flat(small(write_images(folder / "few"), base / "tiny") | {"train.epochs": 1})
        more = RunSpec.from_flat(small(write_images(folder / "many", 52), base / "tiny") | {"resolution.evaluate": [32]})
        done: dict = {}
        for name in ("ingest", "validate", "version"):
            done[name] = chain.run_stage(name, spec, done.__getitem__)
        for name in ("ingest", "validate", "version", "plan", "finetune", "blend", "evaluate"):
            done[name] = chain.run_stage(name, more, done.__getitem__)
        assert done["version"]["dataset"] == "general/v2"
        yield done["finetune"]["run_id"]
    settings.cache_clear()


def page(result: CompareResult) -> str:
    return mlflow.artifacts.load_text(f"runs:/{result.run_id}/comparison.html")


def content(result: CompareResult) -> ModelComparison:
    return ModelComparison.from_json(tracking.load_json_artifact(result.run_id, "comparison.json"))


def test_two_versions_are_tested_on_the_same_rows_and_the_report_is_kept(registry):
    result = compare.run(SPEC, [ONE, TWO])
    found = content(result)
    (group,) = found.groups
    (pair,) = group.pairs
    names = ["general 1", "general 2"]
    assert result.names == names and result.problems == [] and result.tests == 1
    one, two = (group.metrics[n][32]["balanced_accuracy"].value for n in names)
    gain = pair.gain
    assert gain.value == pytest.approx(two - one) and gain.low <= gain.value <= gain.high
    assert gain.p_holm == gain.p  # one test is corrected for nothing
    assert found.parameters["train.seed"] == ["0", "1"] and "train.epochs" not in found.parameters
    assert all(c.pairs == 4 * 48 and c.energy_wh > 0 and "assumed for cpu" in c.assumed for c in found.costs)
    assert all(g.gain.value > 0.15 and g.dataset == "general/v1" for g in found.gains)

    # What the report says of changed images is what the two models said.
    rows, (change,) = group.rows["general 1"], group.changes
    right = {n: sum(m[i] for i in range(2)) for n, c in group.confusion.items() for m in [np.diag(c.counts)]}
    assert right["general 2"] - right["general 1"] == len(change.fixed) - len(change.broken)
    assert all(np.sum(c.counts) == rows for c in group.confusion.values())

    html = page(result)
    assert html.count("data:image/jpeg") == min(8, len(change.fixed)) + min(8, len(change.broken))
    assert "<script" not in html and not re.search(
        r'(src|href)="(?!data:|file:///|http://127\.0\.0\.1:\d+/#/experiments/)', html
    )
    run = tracking.client().get_run(result.run_id)
    assert run.data.tags["clipft.compared"] == "general 1, general 2" and run.info.status == "FINISHED"
    assert tracking.client().get_experiment(run.info.experiment_id).name == "clipft-compare"

    assert compare.run(SPEC, [ONE, TWO]).run_id == result.run_id  # the same question again is the same run


def test_a_domain_is_its_champion_and_its_challenger(registry):
    result = compare.run(SPEC, ["general", "general@champion", TWO], sizes=[32])
    assert result.names == ["general 1 (champion)", "general 2 (challenger)"]


def test_one_model_alone_is_described(registry):
    result = compare.run(SPEC, [ONE])
    assert result.tests == 0 and result.summary[0].startswith("general 1: balanced accuracy ")
    assert "Is the difference real?" not in page(result) and "What is taken for what" in page(result)


def test_another_metric_than_the_gates_may_decide(registry):
    result = compare.run(SPEC, [ONE, TWO], metric="macro_f1")
    pair = content(result).groups[0].pairs[0]
    assert pair.metric == "macro_f1" and pair.gain.low <= pair.gain.value <= pair.gain.high
    assert 0 < pair.gain.p <= pair.gain.p_holm <= 1


def test_different_test_rows_are_refused_with_the_reason_and_two_ways_out(grown):
    run_id = grown
    with pytest.raises(ClipftError) as caught:
        compare.run(SPEC, [ONE, run_id])
    assert re.search(r"general/v1 has \d+, general/v2 \d+, \d+ of them in common", str(caught.value))
    assert "`newest`" in str(caught.value) and "unpaired" in str(caught.value)

    unpaired = compare.run(SPEC, [ONE, TWO, run_id], unpaired=True)
    pairs = content(unpaired).groups[0].pairs
    assert [bool(p.refused) for p in pairs] == [False, True, True] and unpaired.tests == 1
    assert "no paired test: different test rows: general/v1 and general/v2" in page(unpaired)

    newest = compare.run(SPEC, [ONE, TWO, run_id], dataset="newest")
    group = content(newest).groups[0]
    assert set(group.datasets.values()) == {"general/v2"} and newest.tests == 3
    p, corrected = [pair.gain.p for pair in group.pairs], [pair.gain.p_holm for pair in group.pairs]
    assert corrected[int(np.argmin(p))] == pytest.approx(min(1, 3 * min(p)))


@pytest.mark.parametrize("how", ["deleted", "gone for good"])
def test_a_run_deleted_between_comparison_and_report_is_named_and_the_rest_goes_on(registry, monkeypatch, how):
    victim = str(tracking.resolve_version(TWO).run_id)
    predict = zero_shot.predict

    def predicted_and_deleted(*args, **kwargs):
        client = tracking.client()
        if how == "deleted":
            client.delete_run(victim)
        else:
            client._tracking_client.store._hard_delete_run(victim)
        monkeypatch.setattr(zero_shot, "predict", predict)
        return predict(*args, **kwargs)

    monkeypatch.setattr(zero_shot, "predict", predicted_and_deleted)
    result = compare.run(SPEC, [ONE, TWO])
    assert result.tests == 1 and len(result.problems) == 1
    assert "general 2" in result.problems[0] and victim in result.problems[0]
    html = page(result)
    assert result.problems[0] in html
    assert ("its run has no evaluation" in html) == (how == "gone for good")


def test_a_run_that_is_not_there_to_begin_with_is_refused(registry):
    run_id = str(tracking.resolve_version(TWO).run_id)
    tracking.client().delete_run(run_id)
    with refuses("compare.deleted_run", run_id, "restore"):
        compare.run(SPEC, [ONE, run_id])
    with refuses("compare.unknown_run", "0" * 32):
        compare.run(SPEC, ["0" * 32])


@pytest.mark.parametrize(
    ("models", "options", "code", "named"),
    [
        ([], {}, "compare.no_models", "the comparison"),
        (["nobody"], {}, "compare.unknown_model", "'nobody'"),
        (["medical"], {}, "compare.no_models", "medical"),
        (["general@best"], {}, "model.not_registered", "best"),
        ([ONE, "models:/clipft-general/9"], {}, "model.not_registered", "models:/clipft-general/9"),
        ([ONE], {"metric": "beauty"}, "metric.no_interval", "'beauty'"),
        ([ONE], {"dataset": "general/v9"}, "dataset.not_found", "general/v9"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_with_what_would(registry, models, options, code, named):
    with refuses(code, named):
        compare.run(SPEC, models, **options)


def test_the_command_writes_the_page_where_it_is_asked_to(registry, tmp_path):
    out = tmp_path / "report.html"
    done = CliRunner().invoke(main, ["compare", ONE, TWO, "--size", "32", "--device", "cpu", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("<!doctype html>") and '"Comparison"' in done.output
    refused = CliRunner().invoke(main, ["compare", "nobody"])
    assert refused.exit_code == 1 and "Name a domain" in refused.output

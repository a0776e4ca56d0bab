"""A metric of a person's own is measured, reported and judged like those that ship."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from fixtures.browser import overflow_on_a_phone
from fixtures.errors import refuses
from fixtures.evaluation import a_dataset
from fixtures.own_metrics import TopTwo
from fixtures.parity import a_clip

from clipft_tasks.contracts.evaluation import EvaluationResult
from clipft_tasks.contracts.gate import GateVerdict
from clipft_tasks.core import plugins
from clipft_tasks.domains import get_domain
from clipft_tasks.evaluate import custom_metric, evaluator, gate, report, zero_shot
from clipft_tasks.evaluate.evaluator import Evaluation
from clipft_tasks.model.package import preprocessing_of
from clipft_tasks.spec import RunSpec, metric_catalog

OWN = "fixtures.own_metrics:"
LABELED = [{"image": i, "caption": f"image {i}", "label": f"class {i % 3}"} for i in range(30)]


def evaluated(folder, rows: list[dict], **flat: object) -> Evaluation:
    models = {"candidate": a_clip().to("cpu"), "start": a_clip().to("cpu")}
    for clip in models.values():
        clip.model.eval()
        clip.preprocessing = preprocessing_of(get_domain("general"))
    dataset = a_dataset(folder, rows)
    spec = RunSpec.from_flat(
        {"domain": "general", "evaluate.bootstrap": 100, "resolution.train": 32, "resolution.evaluate": [32], **flat}
    )
    task = zero_shot.Task(dataset, 32, 16)
    names = zero_shot.headlines(dataset)
    return evaluator.evaluate(models, task, spec, domain=get_domain("general"), metric=names[0], names=names)


def judged(result: EvaluationResult, *rules: str) -> list[tuple[float | None, str]]:
    spec = RunSpec.from_flat({"resolution.train": 32, "resolution.evaluate": [32], "gate.rules": list(rules)})
    return [(found.measured, found.where) for found in gate.judge(spec.gate.rules, [result], 32)]


def test_it_stands_in_the_result_the_report_and_the_rules(home, tmp_path):
    rules = [f"{OWN}TopTwo >= 0", f"gain({OWN}TopTwo) <= 0"]
    found = evaluated(tmp_path, LABELED, **{"evaluate.metrics": [f"{OWN}Sure"], "gate.rules": rules})
    result = found.result
    top_two, sure = (result.candidate.metrics[f"{OWN}{name}"] for name in ("TopTwo", "Sure"))
    assert 1 / 3 <= top_two <= 1 and EvaluationResult.from_json(result.to_json()) == result
    interval = result.candidate.intervals[f"{OWN}Sure"]
    assert interval.value == sure and interval.low <= sure <= interval.high
    assert f"{OWN}Sure" in {c.metric for c in result.comparisons}
    low = next(c.low for c in result.comparisons if c.metric == f"{OWN}Sure")
    assert judged(result, *rules, f"gain_lower_bound({OWN}Sure) >= 0") == [
        (top_two, "32 px"), (0.0, "32 px"), (low, "32 px")
    ]  # fmt: skip
    verdict = GateVerdict(passed=True, metric=result.metric, opponent="", rules=[], table="", scores={})
    page = report.page(report.Report("Evaluation", [result], {32: found.errors}, verdict, 32, {}))
    assert TopTwo.info.description in page and "share of images with a margin over 0.01" in page
    assert overflow_on_a_phone(page) == 0


def test_one_that_raises_or_gives_no_number_hides_no_other_and_is_no_pass(home, tmp_path):
    names = [f"{OWN}{name}" for name in ("Broken", "Endless", "TopTwo")]
    result = evaluated(tmp_path, LABELED, **{"evaluate.metrics": names}).result
    assert f"{OWN}TopTwo" in result.candidate.metrics
    assert judged(result, f"{OWN}Broken >= -9", f"{OWN}Endless >= -9") == [
        (None, "32 px: it raised RuntimeError: out of ideas"),
        (None, "32 px: it gave no finite number on these rows"),
    ]


def test_one_that_needs_labels_is_absent_without_any(home, tmp_path):
    unlabeled = [row | {"label": ""} for row in LABELED]
    result = evaluated(tmp_path, unlabeled, **{"evaluate.metrics": [f"{OWN}TopTwo"]}).result
    assert f"{OWN}TopTwo" not in result.candidate.metrics
    assert judged(result, f"{OWN}TopTwo >= 0") == [(None, "32 px: the data set has fewer than two classes")]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Nameless", "metric.incomplete"),
        ("Halfway", "metric.incomplete"),
        ("np", "plugin.wrong_kind"),
        ("Nobody", "plugin.not_importable"),
    ],
)
def test_a_class_that_is_not_whole_is_refused(name, code):
    with refuses(code, f"{OWN}{name}"):
        custom_metric.load([f"{OWN}{name}"])


def test_a_package_may_offer_one_under_a_name(monkeypatch, home, tmp_path):
    entry = EntryPoint("top_two", f"{OWN}TopTwo", "clipft.metrics")

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [entry] if group == entry.group and name in (None, entry.name) else []

    with refuses("spec.invalid", "gate.rules", "`top_two`"):
        RunSpec.from_flat({"gate.rules": ["top_two >= 0"]})
    for module in (plugins, metric_catalog):
        monkeypatch.setattr(module, "entry_points", entry_points)
    result = evaluated(tmp_path, LABELED, **{"gate.rules": ["top_two >= 0"]}).result
    assert judged(result, "top_two >= 0") == [(result.candidate.metrics["top_two"], "32 px")]


def test_edited_code_is_another_metric(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "edited_metrics.py"
    file.write_text("from fixtures.own_metrics import TopTwo\nclass Mine(TopTwo): ...\n")
    first = custom_metric.code_of(["edited_metrics:Mine"])
    file.write_text(file.read_text() + "# another\n")
    assert custom_metric.code_of(["edited_metrics:Mine"]) != first
    assert np.unique([len(digest) for digest in first.values()]).tolist() == [16]

"""The catalog of drift signals is the one place that knows them: thresholds, server, Prometheus and Grafana agree with it."""

import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.errors import refuses
from fixtures.references import captions, compared, looked, measured

from clipft_tasks.core.settings import settings
from clipft_tasks.drift import signals, thresholds
from clipft_tasks.drift.diagnosis import diagnose
from clipft_tasks.drift.image_statistics import IMAGE_STATISTICS, STATISTICS
from clipft_tasks.drift.window import Window, pooled
from serving.inference.metrics import Metrics
from serving.inference.settings import ServingSettings

ROOT = Path(__file__).parents[2]
RULES = {
    rule.get("alert", rule.get("record")): rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
}


def test_every_signal_says_what_it_measures_and_what_it_speaks_for():
    for name, signal in signals.signals().items():
        assert name == signal.name and signal.description and signal.rows in signals.ROW_KINDS
        assert signal.cause.kind and signal.cause.reason and signal.smallest_limit > 0
        assert diagnose({name: 2.0}).kind == signal.cause.kind
    assert set(STATISTICS) < set(signals.signals())


def test_the_server_has_a_gauge_for_every_metric_and_a_histogram_for_every_image_statistic_that_asks_for_one():
    families = {family.name: family.documentation for family in Metrics().registry.collect()}
    for metric in signals.window_metrics().values():
        assert families[f"clipft_{metric.prometheus}"] == metric.description
        assert metric.pooled_by is None or metric.pooled_by in signals.ROW_KINDS
    for statistic in IMAGE_STATISTICS:
        assert not statistic.prometheus or families[f"clipft_image_{statistic.prometheus}"] == statistic.help
    names = [m.name for source in signals.sources() for m in source.metrics]
    assert len(names) == len(set(names)) == len({m.prometheus for m in signals.window_metrics().values()})


@pytest.mark.parametrize(
    ("alert", "limit"),
    [
        ("ClipftDrift", thresholds.RATIO),
        ("ClipftDriftSevere", thresholds.SEVERE_RATIO),
        ("ClipftAccuracyLow", thresholds.RATIO),
        ("ClipftErrors", thresholds.ERROR_RATIO),
    ],
)
def test_prometheus_fires_at_our_thresholds(alert, limit):
    found = re.fullmatch(r"clipft:(drift|error)_ratio(\{.*\})? > ([\d.]+)", RULES[alert]["expr"])
    assert found and float(found[3]) == limit


def test_prometheus_words_each_signal_by_its_rows_and_knows_the_one_of_feedback():
    description = RULES["ClipftDrift"]["annotations"]["description"]
    told = {
        kind: set(names.split("|"))
        for names, kind in re.findall(r'match "\^\(([\w|]+)\)\$" \$labels.signal }}(\w+)', description)
    }
    expected = {kind: {s.name for s in signals.SHIPPED if s.rows == kind} for kind in ("texts", "pairs", "images")}
    assert told == expected and "{{ else }}rows{{ end }}" in description
    [performance] = [s for s in signals.SHIPPED if s.rows == "feedback"]
    assert (
        f'signal="{performance.name}"' in RULES["ClipftAccuracyLow"]["expr"]
        and f'signal!="{performance.name}"' in RULES["ClipftDrift"]["expr"]
    )
    assert f"tolerated {100 * thresholds.ACCURACY_DROP:.0f} points" in RULES["ClipftAccuracyLow"]["annotations"]["description"]


def test_prometheus_weighs_the_accuracy_by_the_rows_that_the_catalog_names():
    metric = signals.window_metrics()["accuracy"]
    expr = RULES["clipft:live_accuracy_ratio"]["expr"]
    assert f"clipft_{metric.prometheus} " in expr and f'kind="{metric.pooled_by}"' in expr


def test_a_window_is_as_large_in_the_servers_settings_as_where_limits_were_tried():
    given, window = ServingSettings(), Window(measured(looked(60, 0)))
    assert (given.window, given.window_least, given.window_minutes * 60) == (window.size, window.least, window.seconds)
    assert (window.size, window.least) == (thresholds.WINDOW_ROWS, thresholds.WINDOW_MIN_ROWS)


def test_the_page_on_drift_lists_every_signal():
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (ROOT / "docs" / "drift.md").read_text(), flags=re.M)
    assert {name for row in listed for name in re.findall(r"`(\w+)`", row)} >= {s.name for s in signals.SHIPPED}


# Signals of others ----------------------------------------------------------------------------------------------------


@pytest.fixture
def catalog(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Reads the catalog anew with CLIPFT_DRIFT_SIGNALS as given; afterwards it is as before."""

    def forget() -> None:
        settings.cache_clear()
        for cached in (signals.signals, signals.sources, signals.window_metrics):
            cached.cache_clear()

    def given(named: str) -> None:
        monkeypatch.setenv("CLIPFT_DRIFT_SIGNALS", named)
        forget()

    yield given
    monkeypatch.undo()
    forget()


def test_a_signal_of_somebody_elses_is_measured_published_pooled_and_diagnosed(catalog):
    before = measured(looked(320, 0))
    catalog("fixtures.drift_signals:NovelImages, fixtures.drift_signals:ShortTexts")
    reference = measured(looked(320, 0))
    assert reference.limits.keys() - before.limits.keys() == {"novelty"}  # the other one's limit is a decision
    windows = [Window(reference), Window(reference)]
    for window, rows in zip(windows, (looked(100, 5, strange=1.0), looked(64, 6)), strict=True):
        window.add_images(rows.image, rows.appearance, rows.similarity)
    windows[0].add_texts(captions(64, 6))
    strange, ordinary = (w.measure() for w in windows)
    assert strange.drift["novelty"] > 1 >= ordinary.drift["novelty"]
    assert strange.drift["short_texts"] == 128 and strange.rows["short_texts"] == 64
    both = pooled([strange, ordinary])
    mean = (100 * strange.values["novelty"] + 64 * ordinary.values["novelty"]) / 164
    assert both.values["novelty"] == pytest.approx(mean) and both.rows["novelty"] == strange.rows["novelty"] + 64
    metrics = Metrics()
    metrics.publish("d", "1", strange)
    labels = {"domain": "d", "version": "1"}
    assert metrics.registry.get_sample_value("clipft_novelty_mean", labels) == strange.values["novelty"]
    ratio = metrics.registry.get_sample_value("clipft_drift_ratio", labels | {"signal": "novelty"})
    assert ratio == strange.drift["novelty"]
    assert diagnose({"novelty": 2.0, "text": 3.0}).reasons[-1] == "Some images are like nothing in the reference."
    old = Window(before)
    rows = looked(100, 5, strange=1.0)
    old.add_images(rows.image, rows.appearance, rows.similarity)
    assert "novelty" not in old.measure().drift  # a reference of before has no limit of it


def test_a_package_offers_a_signal_as_an_entry_point(catalog, monkeypatch):
    entry = EntryPoint("novelty", "fixtures.drift_signals:NovelImages", "clipft.drift_signals")

    def entry_points(**asked: Any) -> list[EntryPoint]:
        return [entry] if asked["group"] == entry.group and asked.get("name", entry.name) == entry.name else []

    monkeypatch.setattr("clipft_tasks.core.plugins.entry_points", entry_points)
    catalog("")
    assert signals.signals()["novelty"].rows == "images"


@pytest.mark.parametrize(
    ("name", "code", "named"),
    [
        ("fixtures.drift_signals:Doubled", "signal.name_taken", "'image'"),
        ("fixtures.drift_signals:NoSignal", "plugin.wrong_kind", "clipft_tasks.drift.signals.Signal"),
        ("fixtures.drift_signals:Nowhere", "plugin.not_importable", "fixtures.drift_signals"),
        ("nowhere", "plugin.not_found", "module:Class"),
        ("fixtures.drift_signals:Nameless", "signal.incomplete", "name, rows, description, cause"),
        ("fixtures.drift_signals:Unlimited", "signal.no_limit", "fixed_limit"),
        ("fixtures.drift_signals:OfNothing", "signal.unknown_rows", "images, texts, pairs, feedback"),
        ("fixtures.drift_signals:Reserved", "signal.name_taken", "'errors'"),
    ],
)
def test_a_signal_that_cannot_be_had_is_refused_by_its_name(catalog, name, code, named):
    catalog(name)
    with refuses(code, name, named):
        signals.signals()


def test_a_signal_that_fails_is_left_out_and_the_others_are_measured_all_the_same(catalog, capsys):
    catalog("fixtures.drift_signals:Broken,fixtures.drift_signals:Endless")
    reference = measured(looked(60, 0))
    assert reference.limits["broken"] > 0 and "endless" not in reference.limits
    window, rows = Window(reference), looked(100, 5)
    window.add_images(rows.image, rows.appearance, rows.similarity)
    for _ in range(2):
        found = window.measure()
    assert {"image", "brightness"} <= found.drift.keys() and not {"broken", "endless"} & found.drift.keys()
    assert "broken" not in found.values and "image_mmd" in found.values
    said = "".join(capsys.readouterr())
    assert [said.count(words) for words in ("broken is left out", "of Broken are left out", "endless is left out")] == [1, 1, 1]


def test_a_signal_that_this_release_does_not_know_is_pooled_and_said_to_be_unknown():
    """Of a replica with another package installed."""
    window = Window(measured(looked(60, 0)))
    rows = looked(64, 5)
    window.add_images(rows.image, rows.appearance, rows.similarity)
    found = window.measure()
    other = type(found)(found.drift | {"new": 3.0}, found.values | {"new": 1.0}, 64, 0, 0, found.rows | {"new": 64})
    both = pooled([found, other])
    assert both.drift["new"] == 3.0 and "new" not in both.values
    assert diagnose({"new": 3.0}).kind == "other" and diagnose({"new": 3.0, "text": 2.0}).kind == "other"


def test_a_signal_of_images_is_compared_without_a_model_where_statistics_are_enough():
    reference = measured(looked(320, 0))
    found = signals.ratios(compared(reference, looked(64, 5)), embedded=False)
    assert set(found) == set(STATISTICS)
    assert json.loads(json.dumps(found)) == found

"""Dashboards are code: what lies in the repository is what the code makes, and speaks of metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana import dashboards
from serving.inference.metrics import Metrics

FOLDER = Path(dashboards.__file__).parent


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_the_json_is_what_the_code_makes(name):
    assert (FOLDER / f"{name}.json").read_text() == dashboards.build(name), "run: python -m deploy.grafana.dashboards"


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_every_panel_has_a_title_a_place_and_a_query(name):
    panels = json.loads(dashboards.build(name))["panels"]
    assert len({p["title"] for p in panels}) == len(panels) > 3
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)
    assert all(target["expr"] for p in panels for target in p["targets"])


def test_every_metric_of_the_server_that_a_panel_names_exists():
    there = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    there |= {
        family.name + kind for family in Metrics().registry.collect() for kind in ("", "_total", "_bucket", "_sum", "_count")
    }
    rules = yaml.safe_load((FOLDER.parent / "prometheus" / "rules.yml").read_text())
    there |= {rule["record"] for group in rules["groups"] for rule in group["rules"] if "record" in rule}
    for _, _, queries in dashboards.SERVICE + dashboards.MODEL:
        for query, _ in queries:
            named = set(re.findall(r"\bclipft[a-z0-9_:]*", query.replace("'clipft-server'", "")))
            assert named <= there, named - there


def test_every_metric_of_airflow_that_a_panel_names_exists_with_its_labels():
    """By Airflow's own registry of names, as statsd_exporter (or deploy/statsd.py) writes them."""
    from importlib.resources import files

    registry = yaml.safe_load((files("airflow") / "_shared/observability/metrics/metrics_template.yaml").read_text())["metrics"]
    kinds = {"counter": ("",), "gauge": ("",), "timer": ("_sum", "_count")}
    there = {
        f"airflow_{re.sub(r'[^a-z0-9_]', '_', m['name'])}{suffix}": set(m["name_variables"]) | {"run_type"}
        for m in registry
        for suffix in kinds[m["type"]]
    }
    asked = [query for _, _, queries in dashboards.PIPELINE for query, _ in queries]
    named = {name: query for query in asked for name in re.findall(r"\bairflow_\w+", query)}
    assert len(named) >= 8 and named.keys() <= there.keys(), named.keys() - there.keys()
    for name, query in named.items():
        labels = set(re.findall(r"by \((\w+)\)", query)) | set(re.findall(r"\{(\w+)=", query))
        assert labels <= there[name], (query, there[name])

"""Dashboards are code: what lies in the repository is what the code makes, and speaks of metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deploy.grafana import dashboards
from serving.metrics import Metrics

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

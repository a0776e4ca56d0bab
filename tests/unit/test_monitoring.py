"""Prometheus' rules and Alertmanager's routes, as their own tools understand them, and what the stack fills in."""

import json
import re
import shutil
import stat
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from clipft_tasks.core.settings import settings
from deploy.local import monitoring
from deploy.local.environment import keep_secrets

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
OF_DRIFT = {"ClipftDrift", "ClipftDriftSevere", "ClipftAccuracyLow"}
PORTS = {"SERVER": 18801, "ALERTMANAGER": 19094, "AIRFLOW": 18081}


def tool(program: str, *arguments: object) -> str:
    """What promtool or amtool says; the test fails when it finds a fault, and is skipped where the tool is not installed."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


# Rules --------------------------------------------------------------------------------------------------------------


def test_the_rules_are_rules():
    assert "SUCCESS" in tool("promtool", "check", "rules", RULES)


def test_the_rules_do_what_their_own_tests_say():
    assert "SUCCESS" in tool("promtool", "test", "rules", RULES.with_name("tests.yml"))


def test_every_alert_says_what_it_is_how_bad_and_what_to_do():
    for rule in alerts():
        assert {"summary", "description", "action"} <= rule["annotations"].keys(), rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["for"], rule["alert"]


def test_every_metric_that_the_rules_read_is_one_that_the_server_gives():
    from serving.inference.metrics import Metrics

    registry = next(v for v in vars(Metrics()).values() if type(v).__name__ == "CollectorRegistry")
    given = {name for family in registry.collect() for name in (family.name, f"{family.name}_total", f"{family.name}_bucket")}
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    read = set(re.findall(r"\bclipft_\w+", " ".join(rule["expr"] for rule in rules)))
    assert "clipft_drift_ratio" in read and read <= given


def test_the_watcher_listens_to_the_alerts_that_there_are():
    source = (ROOT / "plugins" / "clipft_drift.py").read_text()
    listened = re.search(r"^ALERTS = \((.*?)\)", source, flags=re.M | re.S)
    assert listened and set(re.findall(r'"(\w+)"', listened[1])) == OF_DRIFT | {"ClipftErrors"}
    by_name = {rule["alert"]: rule for rule in alerts()}
    assert by_name.keys() >= OF_DRIFT


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    given = {"instance": "a", "domain": "d", "version": "1"} | labels
    return {"series": name + "{" + ",".join(f'{k}="{v}"' for k, v in given.items()) + "}", "values": values}


def ratio(values: str, **labels: str) -> dict[str, str]:
    return series("clipft_drift_ratio", values, **({"signal": "image"} | labels))


def items(values: str, **labels: str) -> dict[str, str]:
    return series("clipft_drift_items", values, **({"signal": "image"} | labels))


def with_rules(folder: Path, given: list[dict[str, str]], **expected: Any) -> None:
    """Let promtool feed series to the rules, one value each five seconds, and compare."""
    test = {"interval": "5s", "input_series": given, **expected}
    order = ["clipft-recorded", "clipft-drift", "clipft-service"]  # without it, alerts may be asked before what they are about
    wanted = {"rule_files": [str(RULES)], "evaluation_interval": "5s", "group_eval_order": order, "tests": [test]}
    (folder / "tests.yml").write_text(json.dumps(wanted), encoding="utf-8")
    tool("promtool", "test", "rules", folder / "tests.yml")


def fires(name: str, at: str, *found: tuple[dict[str, str], dict[str, str]]) -> dict[str, Any]:
    expected = [{"exp_labels": labels, "exp_annotations": annotations} for labels, annotations in found]
    return {"eval_time": at, "alertname": name, "exp_alerts": expected}


def recorded(expr: str, value: float | None, labels: str = "") -> dict[str, Any]:
    samples = [] if value is None else [{"labels": labels, "value": value}]
    return {"expr": expr, "eval_time": "30s", "exp_samples": samples}


IMAGE = 'clipft:drift_ratio{domain="d",version="1",signal="image"}'


def test_metrics_without_a_window_behind_them_are_no_drift(tmp_path):
    with_rules(tmp_path, [ratio("9x10"), items("0x10")], alert_rule_test=[fires("ClipftDrift", "40s")])
    with_rules(tmp_path, [ratio("9x10")], alert_rule_test=[fires("ClipftDrift", "40s")])


def test_versions_and_domains_are_not_mixed(tmp_path):
    given = [ratio("4x10"), items("128x10"), ratio("0.5x10", version="2"), items("128x10", version="2")]
    given += [ratio("0.25x10", domain="e"), items("128x10", domain="e")]
    samples = [
        {"labels": f'clipft:drift_ratio{{domain="{d}",version="{v}",signal="image"}}', "value": value}
        for d, v, value in (("d", "1", 4), ("d", "2", 0.5), ("e", "1", 0.25))
    ]
    test = {"expr": "clipft:drift_ratio", "eval_time": "30s", "exp_samples": samples}
    with_rules(tmp_path, given, promql_expr_test=[test])


def test_each_signal_counts_by_the_rows_it_was_measured_on(tmp_path):
    given = [
        ratio("4x10", signal="text"), items("64x10", signal="text"), items("0x10"),
        ratio("0x10", signal="text", instance="b"), items("64x10", signal="text", instance="b"), items("192x10", instance="b"),
    ]  # fmt: skip
    with_rules(tmp_path, given, promql_expr_test=[recorded("clipft:drift_ratio", 2, IMAGE.replace('"image"', '"text"'))])


def test_replicas_that_saw_too_little_to_say_anything_do_not_hide_what_another_sees(tmp_path):
    given = [ratio("3x10"), items("100x10")]
    given += [items("60x10", instance=f"quiet-{n}") for n in range(10)]  # below the least, so they give no metric
    with_rules(tmp_path, given, promql_expr_test=[recorded(IMAGE, 3, IMAGE)])


def an_alert(version: str, signal: str, rows: str) -> tuple[dict[str, str], dict[str, str]]:
    """ClipftDrift of a signal at twice its limit: labels and annotations."""
    rule = next(r for r in alerts() if r["alert"] == "ClipftDrift")
    seen = f"Version {version} of d sees traffic that its reference does not show: signal {signal}"
    annotations = {
        "summary": f"d: {signal} is 2.0 times its limit",
        "description": f"{seen} at 2.00 times its limit, over {rows}, since 1970-01-01 00:00:00 +0000 UTC.",
        "report": rule["annotations"]["report"].replace("{{ $labels.domain }}", "d"),
        "action": rule["annotations"]["action"].replace("{{ $labels.domain }}", "d"),
    }
    return {"severity": "warning", "domain": "d", "version": version, "signal": signal}, annotations


@pytest.mark.parametrize(("signal", "kind"), [("image", "images"), ("text", "texts"), ("alignment", "pairs")])
def test_an_alert_says_on_how_much_it_rests(tmp_path, signal, kind):
    given = [
        ratio("2x20", signal=signal),
        *(items("150x20" if s == signal else "7x20", signal=s) for s in ("image", "text", "alignment")),
    ]
    with_rules(tmp_path, given, alert_rule_test=[fires("ClipftDrift", "40s", an_alert("1", signal, f"150 {kind}"))])


def test_an_alert_counts_the_rows_of_its_own_version_where_several_are_live(tmp_path):
    versions = [str(n) for n in range(1, 9)]
    given = [s for v in versions for s in (ratio("2x20", version=v), items(f"{100 + int(v)}x20", version=v))]
    expected = [an_alert(v, "image", f"{100 + int(v)} images") for v in versions]
    with_rules(tmp_path, given, alert_rule_test=[fires("ClipftDrift", "40s", *expected)])


# What the stack fills in --------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a stack on other ports, with everything written that Prometheus and Alertmanager read."""
    if not all(map(monitoring.binary, monitoring.BINARIES)):
        monkeypatch.setenv("PATH", str(tmp_path))  # so that nothing is installed by a test
    for program, port in PORTS.items():
        monkeypatch.setenv(f"CLIPFT_{program}_PORT", str(port))
    monitoring.prepare()
    return home


def test_alertmanager_takes_its_configuration(prepared):
    said = tool("amtool", "check-config", prepared / "alertmanager.yml")
    assert "SUCCESS" in said and "2 receivers" in said


def test_prometheus_takes_its_configuration(prepared):
    said = tool("promtool", "check", "config", prepared / "prometheus.yml")
    assert "SUCCESS" in said and str(RULES) in said


def test_everything_is_filled_in(prepared):
    for name in ("prometheus.yml", "alertmanager.yml"):
        text = "\n".join(line.split(" #")[0] for line in (prepared / name).read_text().splitlines()[1:])
        assert not re.findall(r"\b[A-Z]+_ADDRESS\b|\bTOKEN_FILE\b|\bRULES\b", text), name
    scraped = yaml.safe_load((prepared / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["static_configs"][0]["targets"] == [f"127.0.0.1:{PORTS['SERVER']}"]
    told = scraped["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert told == [f"127.0.0.1:{PORTS['ALERTMANAGER']}"]


def test_alertmanager_calls_back_with_the_token_that_airflow_wants_and_only_its_owner_reads(prepared):
    receivers = yaml.safe_load((prepared / "alertmanager.yml").read_text())["receivers"]
    [hook] = next(r for r in receivers if r["name"] == "airflow")["webhook_configs"]
    assert hook["url"] == f"http://127.0.0.1:{PORTS['AIRFLOW']}/clipft/alerts"
    token = Path(hook["http_config"]["authorization"]["credentials_file"])
    assert token.read_text() == keep_secrets()["alerts"] and token.is_relative_to(settings().root)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert keep_secrets()["alerts"] not in (prepared / "alertmanager.yml").read_text()


def test_preparing_again_changes_nothing(prepared):
    files = [prepared / name for name in ("prometheus.yml", "alertmanager.yml", "alert-token", "secrets.json")]
    before = [path.read_bytes() for path in files]
    monitoring.prepare()
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in alerts()}))
def test_what_drifts_goes_to_airflow_and_the_rest_to_people(prepared, name):
    labels = [f"alertname={name}", "domain=general", "signal=image", "severity=warning"]
    said = tool("amtool", "config", "routes", "test", f"--config.file={prepared / 'alertmanager.yml'}", *labels)
    assert said.splitlines()[0] == ("airflow" if name in OF_DRIFT else "people")


@pytest.mark.slow
def test_alertmanager_sends_one_message_a_domain_without_what_a_worse_alert_says(prepared, tmp_path):
    program = monitoring.binary("alertmanager")
    if program is None:
        pytest.skip("Alertmanager is not installed")
    told: list[tuple[str, dict[str, Any]]] = []

    class Airflow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append((f"{self.path} {self.headers['authorization']}", json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    drifting = [
        ("ClipftDrift", "general", "image", "warning"), ("ClipftDriftSevere", "general", "image", "critical"),
        ("ClipftDrift", "general", "text", "warning"), ("ClipftDrift", "industrial", "image", "warning"),
        ("ClipftServerDown", "", "", "critical"),  # one replica of several: the others go on seeing drift
    ]  # fmt: skip
    names = ("alertname", "domain", "signal", "severity")
    sent = [{"labels": {k: v for k, v in zip(names, alert, strict=True) if v} | {"version": "1"}} for alert in drifting]
    airflow = ThreadingHTTPServer(("127.0.0.1", PORTS["AIRFLOW"]), Airflow)
    threading.Thread(target=airflow.serve_forever, args=(0.05,), daemon=True).start()
    url, config = f"http://127.0.0.1:{PORTS['ALERTMANAGER']}", prepared / "alertmanager.yml"
    command = [program, f"--config.file={config}", f"--storage.path={tmp_path}", "--cluster.listen-address="]
    process = subprocess.Popen([*command, f"--web.listen-address={url[7:]}"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while len(told) < 2:
            assert process.poll() is None and time.monotonic() < end, told
            with suppress(httpx.TransportError):
                httpx.post(f"{url}/api/v2/alerts", json=sent, timeout=5)
            time.sleep(0.2)
    finally:
        process.terminate()
        process.wait(20)
        airflow.shutdown()
        airflow.server_close()
    assert {where for where, _ in told} == {f"/clipft/alerts Bearer {keep_secrets()['alerts']}"}
    found = {m["groupLabels"]["domain"]: {tuple(a["labels"][n] for n in names) for a in m["alerts"]} for _, m in told}
    assert found == {"general": set(drifting[1:3]), "industrial": {drifting[3]}}


def test_without_the_two_programs_the_stack_goes_on_and_says_so(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(monitoring.subprocess, "run", lambda *words, **options: pytest.fail(f"{words} was run"))
    assert monitoring.prepare() == []
    said = capsys.readouterr().out
    assert "Going on without prometheus and alertmanager" in said and "`make monitoring` installs it" in said


def test_a_program_is_found_whatever_its_packager_called_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert monitoring.binary("alertmanager") is None
    program = tmp_path / "prometheus-alertmanager"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert monitoring.binary("alertmanager") == str(program)

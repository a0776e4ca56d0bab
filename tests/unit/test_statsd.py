"""Airflow's StatsD metrics as Prometheus reads them."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fixtures.ports import free_port
from prometheus_client import CollectorRegistry, generate_latest

from deploy.statsd import StatsdCollector

ROOT = Path(__file__).parents[2]


def shown(*datagrams: bytes) -> dict[str, float]:
    collector, registry = StatsdCollector(), CollectorRegistry()
    registry.register(collector)
    for datagram in datagrams:
        collector.take(datagram)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_counters_add_up_by_their_labels():
    said = shown(
        b"airflow.ti.finish,dag_id=d,state=success:1|c", b"airflow.ti.finish,state=success,dag_id=d:2|c\nairflow.x:1|c"
    )
    assert said == {'airflow_ti_finish{dag_id="d",state="success"}': 3, "airflow_x": 1}


def test_gauges_stand_and_change():
    said = shown(b"a.b,pool_name=p:4|g", b"a.b,pool_name=p:1|g", b"a.c:5|g\na.c:+2|g\na.c:-3|g")
    assert said == {'a_b{pool_name="p"}': 1, "a_c": 4}


def test_times_are_counted_and_summed_in_seconds():
    assert shown(b"a.t,dag_id=d:1500|ms", b"a.t,dag_id=d:250.5|ms") == {
        'a_t_count{dag_id="d"}': 2, 'a_t_sum{dag_id="d"}': pytest.approx(1.7505),
    }  # fmt: skip


def test_what_was_sampled_counts_for_all():
    assert shown(b"a.b:1|c|@0.1") == {"a_b": 10}


@pytest.mark.parametrize(
    "bad", [b"", b"a", b"a:1", b"a:x|c", b"a:1|zz", b":1|c", b"a,b:1|c", b"\xff\xfe:1|c", b"a:1|c|@0", b"a:1|c|@x"]
)
def test_what_is_none_is_passed_over(bad):
    assert shown(bad, b"a.b:1|c") == {"a_b": 1}


def test_any_name_and_label_become_what_prometheus_takes():
    assert shown(b'a-b.c d,k-1=v"1\\:1|c') == {'a_b_c_d{k_1="v\\"1\\\\"}': 1}


def test_it_takes_airflows_metrics_by_udp_and_answers_prometheus_by_tcp_on_the_same_port():
    from statsd import StatsClient

    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "deploy.statsd", "--port", str(port)], cwd=ROOT)
    try:
        client, end, said = StatsClient("127.0.0.1", port, prefix="airflow"), time.monotonic() + 60, ""
        while "airflow_scheduler_heartbeat" not in said:
            assert process.poll() is None and time.monotonic() < end
            client.incr("scheduler_heartbeat")
            try:
                said = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
            except httpx.TransportError:
                time.sleep(0.1)
    finally:
        process.terminate()
        process.wait(20)

"""Airflow's own metrics (StatsD over UDP) as Prometheus reads them, by the names and labels that statsd_exporter gives them.

Debian has no package of statsd_exporter, and Airflow sends its labels along (InfluxDB style), so that a mapping is not needed:
`airflow.ti.finish,dag_id=d,state=success:1|c` becomes `airflow_ti_finish{dag_id="d",state="success"}`. Where statsd_exporter
runs, it may take this program's place on the same ports.
"""

import argparse
import asyncio
import re
import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

KINDS = {b"c": "counter", b"g": "gauge", b"ms": "summary"}
Labels = tuple[tuple[str, str], ...]


class StatsdCollector(Collector):
    """Every metric that was received: counters add up, gauges stand, times are counted and summed in seconds."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[str, Labels], float]] = {}  # name -> (suffix, labels) -> value
        self._lock = threading.Lock()

    def take(self, datagram: bytes) -> None:
        """Lines of `name,label=value:number|kind|@rate`; what is none is passed over."""
        for line in datagram.splitlines():
            try:
                named, _, measured = line.rpartition(b":")
                value, kind, *rest = measured.split(b"|")
                name, *tags = named.decode().split(",")
                labels = tuple(sorted((_clean(k), v) for k, v in (tag.split("=", 1) for tag in tags)))
                rate = float(rest[0].removeprefix(b"@")) if rest else 1.0
                if named and kind in KINDS and rate > 0:
                    self._count(_clean(name), labels, value, kind, rate)
            except ValueError:
                continue

    def _count(self, name: str, labels: Labels, value: bytes, kind: bytes, rate: float) -> None:
        number = float(value)
        with self._lock:
            known = self._values.setdefault(name, {})
            if kind == b"g" and value[:1] not in b"+-":
                known["", labels] = number
            elif kind == b"ms":
                known["_count", labels] = known.get(("_count", labels), 0.0) + 1 / rate
                known["_sum", labels] = known.get(("_sum", labels), 0.0) + number / 1000 / rate
            else:
                known["", labels] = known.get(("", labels), 0.0) + number / rate

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            values = {name: dict(known) for name, known in self._values.items()}
        for name, known in sorted(values.items()):
            metric = Metric(name, "From Airflow's StatsD.", "unknown")
            for (suffix, labels), value in known.items():
                metric.add_sample(name + suffix, dict(labels), value)
            yield metric


def _clean(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, collector: StatsdCollector) -> None:
        self.collector = collector

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.collector.take(data)


async def listen(port: int, host: str = "127.0.0.1") -> None:
    """Hear StatsD on a UDP port and answer Prometheus on the TCP port of the same number, until cancelled."""
    collector, registry = StatsdCollector(), CollectorRegistry()
    registry.register(collector)
    http, thread = start_http_server(port, host, registry)
    line, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Listener(collector), (host, port))
    try:
        await asyncio.Event().wait()
    finally:
        line.close()
        http.shutdown()
        http.server_close()
        await asyncio.to_thread(thread.join)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    asked = parser.parse_args()
    try:
        asyncio.run(listen(asked.port, asked.host))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

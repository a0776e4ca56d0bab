"""What goes wrong is said as RFC 9457 has it, and what is logged and traced names its request: a real server, a real collector."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.live_server import CLASSES, EMBED_TEXTS, IMAGES, TOKEN, Server, copied, trained

from serving.http.problems import MEDIA_TYPE, TITLES

pytestmark = pytest.mark.slow
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "X-Request-Id": "mine 7", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.spans: list = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Taking(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def traced(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Collector]]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    home = copied(trained(base), tmp_path_factory.mktemp("traced") / "home")
    collector = Collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Server(home, max_body_mb=1) as server:
            yield server.ready(), collector
    collector.shutdown()


@pytest.fixture
def server(traced: tuple[Server, Collector]) -> Server:
    return traced[0]


PROBLEMS = {
    "request.not_found": ("GET", "/nothing", None, 404),
    "request.method": ("DELETE", "/v1/embed/texts", None, 405),
    "request.malformed": ("POST", EMBED_TEXTS, {"texts": [7]}, 422),
    "request.no_model": ("POST", EMBED_TEXTS, {"texts": "x", "domain": "medical"}, 404),
    "request.other_version": ("POST", EMBED_TEXTS, {"texts": "x", "version": "9"}, 409),
    "request.dimensions": ("POST", EMBED_TEXTS, {"texts": "x", "dimensions": 8}, 422),
    "request.too_many": ("POST", EMBED_TEXTS, {"texts": ["x"] * 65}, 413),
    "request.long_text": ("POST", EMBED_TEXTS, {"texts": "x" * 5000}, 422),
    "request.bad_image": ("POST", CLASSES, {"images": {"base64": "d29yZHM="}}, 422),
    "request.tokens": ("POST", "/v1/embeddings", {"input": [1]}, 422),
    "request.no_key": ("POST", "/v1/feedback", {"answer_id": "x", "label": "x"}, 401),
    "model.not_registered": ("PUT", "/v1/models/general", {"version": "9", "hold": True}, 409),
}


@pytest.mark.parametrize("code", PROBLEMS)
def test_each_refusal_is_a_problem_with_its_code(server, code):
    method, path, body, status = PROBLEMS[code]
    headers = {"Authorization": f"Bearer {TOKEN}"} if status == 409 else {}
    answer = server.client.request(method, path, json=body, headers=headers)
    told = answer.json()
    assert (answer.status_code, told["code"], answer.headers["content-type"]) == (status, code, MEDIA_TYPE), answer.text
    assert told["type"] == f"urn:clipft:error:{code}" and told["status"] == status and isinstance(told["detail"], str)
    assert told["title"] == TITLES.get(code, told["title"])


def test_where_nothing_is_found_a_way_out_is_said(server):
    assert "/docs" in server.get("/nothing").json()["detail"]
    answer = server.client.delete("/v1/captures/general")
    assert "Allow" in answer.json()["detail"] and answer.headers["allow"] == "GET, PUT"


def test_a_head_that_is_too_large_is_a_problem_too(server):
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n")
        head, _, body = line.makefile("rb").read().partition(b"\r\n\r\n")
    assert MEDIA_TYPE.encode() in head and json.loads(body)["code"] == "request.large_head"


def test_a_line_of_the_log_names_its_request_and_trace(server):
    loaded = server.client.put("/v1/models/general", json={"version": "2", "hold": True}, headers=HEADERS)
    assert server.put("1").status_code == 200
    [line] = [line for line in server.log.read_text().splitlines() if "version 2 of general is live" in line]
    assert line.endswith(f"[answer={loaded.headers['x-clipft-answer-id']} request='mine 7' trace={TRACE}]")
    audit = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith('{"time"')]
    assert [one["audit"]["trace"] for one in audit if one["audit"]["request"] == "mine 7"] == [TRACE]
    assert f'PUT /v1/models/general HTTP/1.1" 200 OK [answer={loaded.headers["x-clipft-answer-id"]}' in server.log.read_text()


@pytest.mark.parametrize("wrong", ["", "x", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-" + TRACE + "-00f067aa0ba902b7-01"])
def test_what_is_no_trace_is_none(wrong):
    from serving.inference.request_log import trace_of

    assert trace_of(wrong) == "" and trace_of(HEADERS["traceparent"]) == TRACE


def test_spans_of_a_request_reach_the_collector_under_its_trace(traced):
    server, collector = traced
    assert server.client.post(CLASSES, json={"images": IMAGES}, headers=HEADERS).status_code == 200

    def roots() -> list:
        return [s for s in collector.spans if s.name == f"POST {CLASSES}" and s.trace_id.hex() == TRACE]

    server.until(lambda: bool(roots()), 20)
    [root] = roots()
    assert root.parent_span_id.hex() == "00f067aa0ba902b7"
    steps = {s.name for s in collector.spans if s.parent_span_id == root.span_id}
    assert steps == {"parse", "decode", "encode"}

"""OpenTelemetry: a span for each request and for the steps of its answer, where an exporter is configured.

Active where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) is set and the extra `tracing` is installed; all of
OpenTelemetry's own settings (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …) hold. Otherwise a span is nothing.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger("uvicorn.error")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Attributes = Mapping[str, str | int]
Note = Callable[[Attributes], None]  # what else is known of a span, later


class Tracing:
    """The spans of one server process."""

    def __init__(self) -> None:
        self._provider: TracerProvider | None = None
        if any(os.environ.get(name) for name in ENDPOINTS) and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true":
            self._provider = _provider()

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Iterator[Note]:
        """Around a request. Its `traceparent` says whose child the span is."""
        if self._provider is None:
            yield lambda more: None
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {key: headers[key] for key in ("traceparent", "tracestate") if key in headers}
        parent = TraceContextTextMapPropagator().extract(carrier)
        tracer = self._provider.get_tracer("clipft")
        with tracer.start_as_current_span(name, parent, trace.SpanKind.SERVER, dict(attributes)) as span:

            def note(more: Attributes) -> None:
                span.set_attributes(dict(more))
                if int(more.get("http.response.status_code", 0)) >= 500:
                    span.set_status(trace.StatusCode.ERROR)
                if name := str(more.get("http.route", "")):
                    span.update_name(f"{attributes['http.request.method']} {name}")

            yield note

    @contextmanager
    def step(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Around a step of the request that is being answered."""
        if self._provider is None:
            yield
            return
        with self._provider.get_tracer("clipft").start_as_current_span(name, attributes=dict(attributes)):
            yield

    def close(self) -> None:
        if self._provider is not None:
            self._provider.shutdown()


def _provider() -> "TracerProvider | None":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning("no traces are sent: install clipft[tracing]")
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "clipft")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider

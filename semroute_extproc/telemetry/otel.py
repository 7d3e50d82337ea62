"""OpenTelemetry spans: one per exchange and one per stage, written when the exchange is over."""

from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes, AttributeValue

from semroute_extproc import __version__
from semroute_extproc.envoy.server import SERVICE
from semroute_extproc.events import Accounted, Decided, Event
from semroute_extproc.outcome import Outcome, facts
from semroute_extproc.telemetry.log import VALUE_CHARACTERS_MAX

QUEUE_SPANS_MAX = 2_048  # Spans that may wait for the exporter; more are dropped
CLOSE_SECONDS_MAX = 2.0  # Time to send the last spans; an unreachable collector must not delay a restart

_TABLE = msgspec.toml.decode(Path(__file__).with_suffix(".toml").read_bytes())
OPERATIONS: dict[str, str] = _TABLE["operations"]


def exporter(endpoint: str | None) -> SpanExporter:
    """An OTLP exporter to `endpoint`, or as OpenTelemetry's own variables say."""
    return OTLPSpanExporter(endpoint=endpoint, insecure=True if endpoint else None)


class OtelSink:
    """Writes each decision as a span with its stages as children."""

    def __init__(self, span_exporter: SpanExporter) -> None:
        resource = Resource.create({SERVICE_NAME: "semroute-extproc", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(span_exporter, max_queue_size=QUEUE_SPANS_MAX))
        self._tracer = self._provider.get_tracer("semroute_extproc", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def handle(self, event: Event) -> None:
        """Write the spans of a decision."""
        if isinstance(event, Accounted):
            name, values = f"{OPERATIONS.get(event.api or '', 'generate')} {event.served}", answered(event)
            self._started(event, name, trace.SpanKind.CLIENT, values).end(event.ended_ns)
        if not isinstance(event, Decided):
            return
        values = attributes(event.outcome, event.request_id)
        span = self._started(event, f"{SERVICE}/Process", trace.SpanKind.SERVER, values)
        if not span.is_recording():
            return
        inside = trace.set_span_in_context(span)
        for stage in event.outcome.stages:
            start = event.decided_ns + int(stage.start_ms * 1e6)
            child = self._tracer.start_span(f"semroute.{stage.name}", context=inside, start_time=start)
            child.end(start + int(stage.ms * 1e6))
        span.end(event.ended_ns)

    def _started(self, event: Any, name: str, kind: trace.SpanKind, values: Attributes) -> trace.Span:
        """A span of the event's time; its parent is the first valid one."""
        given = (self._propagator.extract({"traceparent": each}) for each in event.parents)
        valid = (each for each in given if trace.get_current_span(each).get_span_context().is_valid)
        return self._tracer.start_span(name, next(valid, None), kind, values, start_time=event.started_ns)

    def close(self, seconds: float = CLOSE_SECONDS_MAX) -> None:
        """Send the remaining spans, for at most `seconds`."""
        closing = Thread(target=self._provider.shutdown, name="otel-close", daemon=True)
        closing.start()
        closing.join(seconds)


def attributes(outcome: Outcome, request_id: str) -> dict[str, AttributeValue]:
    """The span's attributes; never prompt text."""
    values: dict[str, AttributeValue] = {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Process",
        "http.request.header.x-request-id": request_id[:VALUE_CHARACTERS_MAX],
        "semroute.decision.reason": outcome.reason,
    }
    common = facts(outcome)
    values.update((name, common[fact]) for fact, name in _TABLE["facts"].items() if fact in common)
    if outcome.view is not None:
        values["gen_ai.operation.name"] = OPERATIONS.get(outcome.view.api, "")
        values["gen_ai.original.model"] = outcome.view.model[:VALUE_CHARACTERS_MAX]
    if outcome.signals is not None:
        values["semroute.difficulty"] = outcome.signals.difficulty
        values["semroute.tokens.count"] = outcome.signals.tokens
    return {key: value for key, value in values.items() if value != ""}


def answered(event: Accounted) -> dict[str, AttributeValue]:
    """The attributes of an answer's span, by the GenAI conventions where they have a name."""
    values: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": OPERATIONS.get(event.api or ""),
        "gen_ai.response.finish_reasons": [event.finish],
        **{name: getattr(event, field) for field, name in _TABLE["answer"].items()},
        **{name: getattr(event.usage, field) for field, name in _TABLE["usage"].items()},
    }
    return {key: value for key, value in values.items() if value not in ("", None)}

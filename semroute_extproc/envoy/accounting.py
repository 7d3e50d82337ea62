"""The answers of the pools, from Envoy's access log: tokens, dollars and times.

Envoy's filter `accounting` looks at an answer while it passes and keeps a few facts of it as dynamic metadata
of the namespace `semroute.answer`; the access log sends them here afterwards, together with the decision
(docs/adr/0017-envoy-reads-the-usage.md). So an answer never waits for us, and any worker can account for it.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from semroute_extproc.config.models import Config
from semroute_extproc.envoy._pb import access_log_pb2 as pb
from semroute_extproc.envoy.replies import METADATA_NAMESPACE
from semroute_extproc.errors import BadBody, BodyTooLarge, UnsupportedEncoding
from semroute_extproc.events import Accounted, Emit, Failed
from semroute_extproc.outcome import Kind
from semroute_extproc.policy.rules import TENANT_HEADER
from semroute_extproc.request.body import decode_body
from semroute_extproc.request.paths import place_of
from semroute_extproc.request.usage import Parts, Usage, parts_of, usage_of
from semroute_extproc.settings.pools import cost

SERVICE = "envoy.service.accesslog.v3.AccessLogService"
ANSWER_NAMESPACE = "semroute.answer"  # of the dynamic metadata that the filter writes
STREAMS_MAX = 256  # access log streams; each worker thread of each Envoy has one
PLAIN_BYTES_MAX = 4 * 1024**2  # of an answer that was compressed
COMBINATIONS_MAX = 2_000  # of pool, rule, model and tenant in metrics
NAME_CHARACTERS_MAX, TEXT_BYTES_MAX = 128, 256  # of a tenant or a finish reason; of what a client wrote
TRACEPARENT = "traceparent"  # W3C header: Envoy's in the stream's metadata, the client's in the request
OTHER = "other"  # the tenant of further combinations

_Context = grpc.aio.ServicerContext[Any, Any]
_Values = dict[str, Any]


class Accountant:
    """Serves access log streams and emits `Accounted` for each answer."""

    def __init__(self, config: Callable[[], Config], emit: Emit) -> None:
        self._config, self._emit = config, emit
        self._streams: set[asyncio.Task[Any]] = set()
        self._labels: set[tuple[str, ...]] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server needs to serve it."""
        # Messages stay bytes: one that gRPC could not decode would end the stream, uncounted.
        method: Any = grpc.stream_unary_rpc_method_handler(self.serve)
        return grpc.method_handlers_generic_handler(SERVICE, {"StreamAccessLogs": method})

    def close(self) -> None:
        """End the streams; Envoy would keep them open."""
        for stream in self._streams:
            stream.cancel()

    async def serve(self, messages: AsyncIterator[bytes], context: _Context) -> bytes:
        """Handle one stream to its end."""
        if len(self._streams) >= STREAMS_MAX:  # Envoy counts what it drops then
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many access log streams")
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async for message in messages:
                await self.receive(message)
        except asyncio.CancelledError:
            task.uncancel()  # by `close`: gRPC waits for a handler that does not return
        finally:
            self._streams.discard(task)
        return b""

    async def receive(self, message: bytes) -> None:
        """Account for the answers of one message; what cannot be read is counted as an internal error."""
        try:
            entries = pb.StreamAccessLogsMessage.FromString(message).http_logs.log_entry
        except Exception:
            self._emit(Failed("accounting.failed"))
            return
        for entry in entries:
            try:
                if (event := await self._accounted(entry)) is not None:
                    self._emit(event)
            except Exception:
                self._emit(Failed("accounting.failed", _text(entry.request.request_id)))

    async def _accounted(self, entry: pb.HTTPAccessLogEntry) -> Accounted | None:
        common, config = entry.common_properties, self._config()
        if config.accounting is None:
            return None
        spaces = common.metadata.filter_metadata
        answer, decision = _values(spaces[ANSWER_NAMESPACE]), _values(spaces[METADATA_NAMESPACE])
        api = place_of(_text(entry.request.path), config.server.path_prefixes).api
        usage, finish, problem = None, "error", ""
        if answer["status"][:1] == "2":
            parts, problem = await _parts(answer)
            usage = usage_of(parts, api, "ended" in answer, int(decision.get("prompt_tokens", 0)))
            finish = parts.finish[:NAME_CHARACTERS_MAX]
            if not problem and (usage is None or usage.estimated):
                problem = "no_usage" if "ended" in answer else "cut"
        usage, served = usage or Usage(), decision.get("model", "")
        headers = {key: _text(value) for key, value in entry.request.request_headers.items()}
        labels = decision["pool"], decision.get("rule", ""), decision.get("alias") or served
        started = common.start_time.ToNanoseconds()
        received = started + common.time_to_last_rx_byte.ToNanoseconds()
        first, ended = (int(answer.get(key, 0)) * 1_000_000 for key in ("first", "last"))
        stream = first and answer.get("stream")
        paced = stream and usage.output > 1 and ended > first
        return Accounted(
            _text(entry.request.request_id),
            api,
            *labels,
            self._bounded(*labels, headers.get(TENANT_HEADER, "")[:NAME_CHARACTERS_MAX]),
            served,
            finish,
            problem,
            usage,
            *_dollars(config, decision, usage),
            max(0, first - received) / 1e9 if stream else None,
            (usage.output - 1) * 1e9 / (ended - first) if paced else None,
            tuple(headers[key] for key in headers if key == TRACEPARENT),
            started,
            ended or started,
        )

    def _bounded(self, pool: str, rule: str, model: str, tenant: str) -> str:
        """The tenant as a label; of the others, only the configuration has values."""
        labels = (pool, rule, model, tenant)
        if labels not in self._labels and len(self._labels) >= COMBINATIONS_MAX:
            return OTHER
        self._labels.add(labels)
        return tenant


async def _parts(answer: _Values) -> tuple[Parts, str]:
    """What is known of an answer, and why it is not more."""
    if "stream" not in answer:
        return Parts(), "content_type"
    opening, closing = (answer.get(key, "").encode() for key in ("opening", "closing"))
    kept = Parts(opening, closing, answer.get("finish", ""), int(answer.get("events", 0)))
    if "coding" not in answer or "ended" not in answer:
        return kept, ""
    try:
        packed = base64.b64decode(answer["encoded"])
        # In a thread, because it can take milliseconds.
        plain = await asyncio.to_thread(decode_body, packed, answer["coding"], PLAIN_BYTES_MAX)
    except (KeyError, BodyTooLarge):
        return kept, "too_long"
    except (BadBody, UnsupportedEncoding):
        return kept, "encoding"
    return parts_of(plain, answer["stream"]), ""


def _dollars(config: Config, decision: _Values, usage: Usage) -> tuple[float, float, float]:
    """What an answer cost, what it would have cost in the baseline's pool, and what cached tokens saved."""

    def price(name: str, cached: int = usage.cached) -> float:
        found = config.pools.get(name)  # a reload may have removed it
        return cost(found, usage.input, usage.output, cached) if found else 0.0

    fixed = config.accounting.baseline if config.accounting else None
    decided = decision["outcome"] in (Kind.ROUTED, Kind.FALLBACK)
    others = [fixed] if fixed and decided else decision["candidates"].split()
    paid = price(decision["pool"])
    return paid, max(map(price, others)), price(decision["pool"], 0) - paid


def _values(struct: Any) -> _Values:
    """The fields of a protobuf Struct."""
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in struct.fields.items()}


def _text(raw: bytes) -> str:
    return raw[:TEXT_BYTES_MAX].decode("utf-8", "replace")

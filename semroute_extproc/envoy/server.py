"""The gRPC side: streams in, bytes out, health, drain."""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.accounting import TRACEPARENT, Accountant
from semroute_extproc.envoy.exchange import Exchange, ExchangeSettings, Step
from semroute_extproc.events import Decided, Emit, Failed, StreamRefused
from semroute_extproc.outcome import Cause, Outcome
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.settings.process import Server

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"  # appears only in the method's path
MESSAGE_SLACK_BYTES = 128 * 1024
"""Room in a gRPC message for headers and attributes, and for the 64 KiB by which Envoy's limit
on a body is above ours (envoy/envoy.yaml)."""
UPLOADS_SHARE_MAX = 0.75  # of `server.streams_max` that may wait for bodies; then the oldest one is passed on
SPARE_RPCS_MAX = 1_024  # besides the streams, so that a full server answers health checks and counts refusals
SOCKET_MODE = 0o660  # a Unix socket is for the sidecar's user and group; Envoy runs in the group
STOP_GRACE_SECONDS = 5.0  # for open streams to end after the drain; then they are cancelled
PROBE_SECONDS = 1.0  # timeout of the check whether a process serves on an existing socket file
GRPC_EXPERIMENTS = "-event_engine_listener"
"""Use gRPC's own poller instead of an extra thread pool: a third less CPU per stream
(docs/performance.md). Unknown names are only logged; the environment variable overrides this."""


@dataclass(frozen=True, slots=True)
class ConfigSnapshot:
    """One live configuration: replaced as a whole; a stream keeps the one it started with."""

    number: int
    settings: ExchangeSettings
    pipeline: Pipeline


_Times = tuple[int, int, int]  # the stream began, the decision began, the replies were written
_Context = grpc.aio.ServicerContext[Any, Any]


class Servicer:
    """Serves ext_proc streams, each with the config snapshot that is live when it begins."""

    def __init__(self, snapshot: Callable[[], ConfigSnapshot], emit: Emit) -> None:
        self.open: dict[_Context, tuple[Exchange, int]] = {}  # streams, and when they began
        self.waiting: dict[_Context, None] = {}  # those whose body has not begun to arrive, the oldest first
        self._snapshot = snapshot
        self._emit = emit

    async def process(self, _: Any, context: _Context) -> None:
        """Handle one stream until no reply is left to send; cancellation is not an error."""
        snapshot = self._snapshot()
        streams_max = snapshot.pipeline.config.server.streams_max
        if len(self.open) >= streams_max:
            self._emit(StreamRefused())
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        exchange, started_ns = Exchange(snapshot.settings), time.time_ns()
        self.open[context] = exchange, started_ns
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                self.waiting.pop(context, None)
                decided_ns, stepping = time.time_ns(), self._step(snapshot, exchange, data)
                del data  # Many large bodies may wait for their turn: one copy of each is enough.
                if (step := await stepping) is None:
                    unreadable = grpc.StatusCode.INVALID_ARGUMENT
                    return await self._end(context, unreadable, Cause.UNREADABLE_MESSAGE)
                times = started_ns, decided_ns, time.time_ns()
                try:
                    for reply in step.replies:
                        await context.write(reply)
                finally:
                    # After the write, so Envoy does not wait for telemetry; also if it is cancelled.
                    if step.outcome is not None:
                        self._report(exchange, step.outcome, context, times)
                if exchange.finished:
                    return None  # Otherwise Envoy keeps the stream until the client has read the answer.
                if step.waits:
                    self.waiting[context] = None
                    if len(self.waiting) > UPLOADS_SHARE_MAX * streams_max:
                        # Clients that send no bodies must not keep others from being routed.
                        oldest, full = next(iter(self.waiting)), grpc.StatusCode.RESOURCE_EXHAUSTED
                        await self._end(oldest, full, Cause.TOO_MANY_UPLOADS)
        finally:
            # Envoy half-closes a stream or resets it, which cancels the read.
            self._ended(context, Cause.NO_BODY)

    async def _end(self, context: _Context, code: grpc.StatusCode, cause: Cause) -> None:
        """End a stream; Envoy's `failure_mode_allow` determines what happens to an undecided request."""
        # Counted now, because the stream's own task may continue only after Envoy has closed the stream.
        if self._ended(context, cause):
            with suppress(grpc.aio.AbortError):
                await context.abort(code, cause.words)

    def _ended(self, context: _Context, cause: Cause) -> bool:
        """Forget a stream, and report its request if that has no outcome yet; may be called twice."""
        self.waiting.pop(context, None)
        exchange, started_ns = self.open.pop(context, (None, 0))
        if exchange is None or (outcome := exchange.ended(cause)) is None:
            return False
        now_ns = time.time_ns()
        self._report(exchange, outcome, context, (started_ns, now_ns, now_ns))
        return True

    async def _step(self, live: ConfigSnapshot, exchange: Exchange, data: bytes) -> Step | None:
        """The replies to a message, and the outcome once there is one; None if it cannot be read."""
        try:
            message = pb.ProcessingRequest.FromString(data)
        except DecodeError:  # for example, the name of a header is not UTF-8
            self._emit(Failed("message.unreadable", exchange.head.request_id))
            return None
        kind = message.WhichOneof("request")
        try:
            step = exchange.receive(message, len(data))
            del message, data
            if step.decide is None:
                return step
            outcome = await live.pipeline.decide(step.decide)
            return Step(exchange.decided(outcome), outcome=outcome)
        except Exception:
            self._emit(Failed("exchange.failed", exchange.head.request_id))
            return exchange.rescue(kind)

    def _report(self, exchange: Exchange, outcome: Outcome, context: _Context, times: _Times) -> None:
        """Emit `Decided`. A telemetry failure never affects the decision."""
        head = exchange.head
        try:
            parents = [str(value) for key, value in context.invocation_metadata() or () if key == TRACEPARENT]
            if TRACEPARENT in head.headers:
                parents.append(head.headers[TRACEPARENT])
        except Exception:
            self._emit(Failed("telemetry.failed", head.request_id))
            return
        observed, path = exchange.observed, head.path.partition("?")[0]
        self._emit(Decided(outcome, head.request_id, path, tuple(parents), *times, observed=observed))


class GrpcServer:
    """A bound server with health; SERVING once `ready` is called."""

    def __init__(
        self, settings: Server, servicer: Servicer, worker: int = 0, accountant: Accountant | None = None
    ) -> None:
        self._settings, self._accountant = settings, accountant
        self._listen = settings.address(worker)
        # Read by gRPC when the process makes its first server or channel.
        os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
        limit = settings.body_bytes_max + MESSAGE_SLACK_BYTES  # gRPC's own 4 MiB would refuse a long prompt
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.streams_max + SPARE_RPCS_MAX,
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", settings.streams_max + SPARE_RPCS_MAX),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ],
        )
        # Without a deserializer: if it failed, gRPC would end the stream before we could count it.
        method: Any = grpc.stream_stream_rpc_method_handler(servicer.process)
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Process": method})
        others = (accountant.handler(),) if accountant else ()
        self._server.add_generic_rpc_handlers((handler, *others))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> int:
        """Bind and listen, not yet SERVING; returns the port, 1 for a Unix socket; raises OSError."""
        path = Path(self._listen.removeprefix("unix:")) if self._listen.startswith("unix:") else None
        if path:
            _check_socket(path)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError:
            raise OSError(f"cannot listen on {self._listen}") from None
        await self._server.start()
        if path:
            path.chmod(SOCKET_MODE)
        return port

    async def ready(self) -> None:
        """Report SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Report NOT_SERVING, wait for the drain time so that Envoy stops sending, then stop."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_seconds)
        if self._accountant is not None:
            self._accountant.close()
        await self._server.stop(STOP_GRACE_SECONDS)

    async def _set_health(self, status: Any) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _check_socket(path: Path) -> None:
    """Raise OSError if no socket can be created at `path`, or if a process serves on it.

    gRPC takes over any socket file. If two servers shared one, the first to stop would delete it.
    """
    prefix = f"cannot listen on unix:{path}"
    if not path.parent.is_dir():
        raise OSError(f"{prefix}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(f"{prefix}: no permission to write to {path.parent}")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise OSError(f"{prefix}: {error}") from None
    raise OSError(f"{prefix}: another process is serving there")

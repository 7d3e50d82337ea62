"""The gRPC side: streams in, bytes out, health, drain."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.exchange import Exchange, Settings, Step
from semroute_extproc.events import Decided, Sink
from semroute_extproc.outcome import Outcome
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.settings.process import Server
from semroute_extproc.telemetry.prom import PrometheusSink

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
"""Envoy's name of the service: the method path is all of it that goes over the wire."""

MESSAGE_SLACK_BYTES = 128 * 1024
"""Room in a gRPC message beside the body: headers, attributes, metadata, and what Envoy's own cap on a
body may lie above ours (64 KiB in envoy/envoy.yaml)."""

HEALTH_RPCS_MAX = 16
"""Calls taken beside the streams: a server that is merely busy must not look dead to Envoy."""

SOCKET_MODE = 0o660
"""A Unix socket is for the sidecar's user and group; Envoy runs in the group."""

STOP_GRACE_SECONDS = 5.0
"""After the drain: how long streams still open may take before they are cut."""

PROBE_SECONDS = 1.0
"""How long a socket file that is already there may take to show whether it is served."""

TRACEPARENT = "traceparent"
"""W3C's header of a trace's parent: Envoy's own in the stream's metadata, the client's in the request."""

GRPC_EXPERIMENTS = "-event_engine_listener"
"""Has gRPC's own poller read the sockets instead of a pool of threads beside it: a stream then takes
half the hops between threads, and a third less CPU (docs/performance.md). A gRPC that does not know the
name says so on standard error and goes on; the variable of the same name overrides it."""

log = structlog.get_logger("semroute.server")


@dataclass(frozen=True, slots=True)
class Generation:
    """One configuration, live: swapped as a whole, kept by a stream from its first message on."""

    number: int
    sha256: str
    settings: Settings
    pipeline: Pipeline


class Servicer:
    """Serves ext_proc streams with whatever generation is live when a stream begins."""

    def __init__(
        self, generation: Callable[[], Generation], sinks: Sequence[Sink], metrics: PrometheusSink
    ) -> None:
        self._generation = generation
        self._sinks = sinks
        self._metrics = metrics
        self._open = 0
        metrics.inflight.set_function(lambda: self._open)

    async def process(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """One stream, to its end; a cancelled stream is as normal as a finished one."""
        generation = self._generation()
        if self._open >= generation.pipeline.config.server.streams_max:
            self._metrics.refused.inc()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        exchange = Exchange(generation.settings)
        started_ns = time.time_ns()
        self._open += 1
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                decided_ns = time.time_ns()
                step = await self._step(generation, exchange, message)
                ended_ns = time.time_ns()
                try:
                    for reply in step.replies:
                        await context.write(reply)
                finally:
                    # Envoy need not wait for the telling, and a stream that is cancelled at the write is
                    # told all the same.
                    if step.outcome is not None:
                        self._tell(exchange, step.outcome, context, (started_ns, decided_ns, ended_ns))
            if (outcome := exchange.ended()) is not None:
                now_ns = time.time_ns()
                self._tell(exchange, outcome, context, (started_ns, now_ns, now_ns))
        finally:
            self._open -= 1

    async def _step(self, generation: Generation, exchange: Exchange, message: pb.ProcessingRequest) -> Step:
        """The replies to a message, and the outcome if it brought one."""
        try:
            step = exchange.receive(message)
            if step.decide is None:
                return step
            outcome = await generation.pipeline.decide(step.decide)
            return Step(exchange.decided(outcome), outcome=outcome)
        except Exception:
            self._failed("exchange.failed", exchange)
            return exchange.rescue(message.WhichOneof("request"))

    def _failed(self, what: str, exchange: Exchange) -> None:
        self._metrics.errors.inc()
        log.exception(what, request_id=exchange.head.request_id)

    def _tell(
        self,
        exchange: Exchange,
        outcome: Outcome,
        context: grpc.aio.ServicerContext[Any, Any],
        times: tuple[int, int, int],
    ) -> None:
        """Tell every sink; `times` are as in `Decided`. What could not be told was decided all the same."""
        head = exchange.head
        try:
            parents = [str(value) for key, value in context.invocation_metadata() or () if key == TRACEPARENT]
            if TRACEPARENT in head.headers:
                parents.append(head.headers[TRACEPARENT])
            started_ns, decided_ns, ended_ns = times
            event = Decided(
                outcome=outcome,
                request_id=head.request_id,
                path=head.path.partition("?")[0],
                parents=tuple(parents),
                started_ns=started_ns,
                decided_ns=decided_ns,
                ended_ns=ended_ns,
                observed=exchange.observed,
            )
            for sink in self._sinks:
                sink.handle(event)
        except Exception:
            self._failed("telemetry.failed", exchange)


class GrpcServer:
    """A bound server with health; SERVING once `ready` is called."""

    def __init__(self, settings: Server, servicer: Servicer, worker: int = 0) -> None:
        self._settings = settings
        self._listen = settings.address(worker)
        # Read by gRPC when the process makes its first server or channel.
        os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
        limit = settings.body_bytes_max + MESSAGE_SLACK_BYTES
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.streams_max + HEALTH_RPCS_MAX,
            options=[
                # gRPC's own default of 4 MiB would turn a long prompt into an error.
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_concurrent_streams", settings.streams_max),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.so_reuseport", 0),
            ],
        )
        method: Any = grpc.stream_stream_rpc_method_handler(
            servicer.process, request_deserializer=pb.ProcessingRequest.FromString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Process": method}),)
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self) -> int:
        """Bind and listen, not yet SERVING; returns the port, 1 for a Unix socket.

        Raises OSError if the address cannot be had.
        """
        listen = self._listen
        if listen.startswith("unix:"):
            _check_place(Path(listen.removeprefix("unix:")))
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError:
            raise OSError(f"cannot listen on {listen}") from None
        await self._server.start()
        if listen.startswith("unix:"):
            os.chmod(Path(listen.removeprefix("unix:")), SOCKET_MODE)
        return port

    async def ready(self) -> None:
        """Report SERVING."""
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Report NOT_SERVING and still serve for the drain time, then end.

        A Unix socket vanishes with the server, so Envoy must have turned away before it stops.
        """
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.drain_seconds)
        await self._server.stop(STOP_GRACE_SECONDS)


def _check_place(path: Path) -> None:
    """Raise OSError if there cannot be a socket at `path`, or if a process serves on it.

    gRPC takes a socket file over, whoever it belongs to. One that a crash left behind may be taken;
    that of a live server may not: it would vanish for both as soon as either of them stops.
    """
    if not path.parent.is_dir():
        raise OSError(f"cannot listen on unix:{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(f"cannot listen on unix:{path}: we may not write to {path.parent}")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except OSError as error:
            raise OSError(f"cannot listen on unix:{path}: {error}") from None
    raise OSError(f"cannot listen on unix:{path}: another process is serving there")

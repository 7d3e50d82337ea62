"""A client of the external processor that plays Envoy and leaves the CPU to the server.

HTTP/2 is libnghttp2's (`ngh2`). A stream costs a fifth of what a gRPC client in Python takes, so on a
small machine the rates are the server's. Load generators such as h2load do not fit: they send both messages
of a stream at once, the same body each time, and do not read replies.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Protocol, cast

from ngh2 import Configuration, Connection, Role
from ngh2.events import ConnectionClosed, DataReceived, GoAwayReceived, StreamClosed

from semroute_bench.load import Exchange
from semroute_bench.machine import cpu_seconds
from semroute_bench.samples import Samples
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

HEADERS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", f"/{SERVICE}/Process".encode()),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)

STREAMS_MAX = 10_000
"""Open streams until the server states its own limit."""

RUN_SECONDS_MAX = 300.0
"""How long one closed run may take."""

LAST_SECONDS_MAX = 30.0
"""How long the last answers of an open run may take; later ones count as unanswered."""


class ClientError(Exception):
    """A stream that ended without both replies, or a server that is gone or too slow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a body."""

    ms: float
    """From the body to its reply, as the client saw it."""
    reply: bytes
    """The serialized `ProcessingResponse`; empty if none came."""

    @property
    def outcome(self) -> str:
        """`routed`, `fallback` …; empty if the reply states none."""
        fields = pb.ProcessingResponse.FromString(self.reply).dynamic_metadata.fields
        return fields["semroute"].struct_value.fields["outcome"].string_value


class _Stream:
    """One open stream."""

    __slots__ = ("body", "buffer", "done", "ms", "replies", "sent")

    def __init__(self, body: bytes, done: asyncio.Future[Answer]) -> None:
        self.body, self.done = body, done
        self.buffer = b""
        self.replies: list[bytes] = []
        self.sent = self.ms = 0.0


class Client(asyncio.Protocol):
    """One connection to a server's Unix socket; made by `connect`."""

    def __init__(self) -> None:
        self._http2 = Connection(Role.CLIENT, Configuration(peer_max_concurrent_streams=STREAMS_MAX))
        self._streams: dict[int, _Stream] = {}
        self._loop = asyncio.get_running_loop()

    def send(self, request: Exchange) -> asyncio.Future[Answer]:
        """Start one stream; the future ends with it, or raises ClientError."""
        number = self._http2.send_request(HEADERS)
        self._http2.send_data(number, _message(request.headers))
        self._streams[number] = stream = _Stream(request.body, self._loop.create_future())
        self._flush()
        return stream.done

    async def closed(
        self, requests: Iterable[Exchange], concurrency: int, seconds_max: float = RUN_SECONDS_MAX
    ) -> list[Answer]:
        """Send every request, `concurrency` at a time; raises ClientError."""
        waiting = iter(requests)

        async def take_turns() -> list[Answer]:
            return [await self.send(request) for request in waiting]

        try:
            async with asyncio.timeout(seconds_max):
                found = await asyncio.gather(*(take_turns() for _ in range(concurrency)))
        except TimeoutError:
            raise ClientError(f"the run took longer than {seconds_max:g} s") from None
        return [answer for answers in found for answer in answers]

    async def open(
        self, request: Exchange, rate: float, seconds: float, last_seconds_max: float = LAST_SECONDS_MAX
    ) -> list[Answer]:
        """Poisson arrivals at `rate` per second, independent of earlier answers; raises ClientError."""
        draw, sent = random.Random(1), []
        start = at = perf_counter()
        while at - start < seconds:
            await asyncio.sleep(max(0.0, at - perf_counter()))
            sent.append(self.send(request))
            at += draw.expovariate(rate)
        await asyncio.wait(sent, timeout=last_seconds_max)
        return [answer.result() if answer.done() else Answer(0.0, b"") for answer in sent]

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._http2.initiate_connection()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        for number in list(self._streams):
            self._fail(number, f"the server closed the connection ({exc})")

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._http2.receive_data(data)
        for event in self._http2.events():
            if isinstance(event, DataReceived):
                self._data(event.stream_id, event.data)
            elif isinstance(event, StreamClosed):
                self._end(event.stream_id)
            elif isinstance(event, GoAwayReceived | ConnectionClosed):
                self._transport.close()
        self._flush()

    def _data(self, number: int, data: bytes) -> None:
        stream = self._streams[number]
        stream.buffer += data
        size = 5 + int.from_bytes(stream.buffer[1:5], "big")
        if len(stream.buffer) < max(size, 5):
            return
        stream.replies.append(stream.buffer[5:size])
        stream.buffer = stream.buffer[size:]
        if len(stream.replies) == 1:
            stream.sent = perf_counter()
            self._http2.send_data(number, _message(stream.body))
        else:
            stream.ms = (perf_counter() - stream.sent) * 1e3
            self._http2.end_stream(number)

    def _end(self, number: int) -> None:
        replies = len(self._streams[number].replies)
        if replies != 2:
            self._fail(number, f"a stream ended after {replies} replies")
            return
        stream = self._streams.pop(number)
        if not stream.done.done():
            stream.done.set_result(Answer(stream.ms, stream.replies[1]))

    def _fail(self, number: int, why: str) -> None:
        stream = self._streams.pop(number)
        if not stream.done.done():
            stream.done.set_exception(ClientError(why))

    def _flush(self) -> None:
        if data := self._http2.data_to_send():
            self._transport.write(data)


def _message(payload: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


@asynccontextmanager
async def connect(socket: Path) -> AsyncIterator[Client]:
    """A connection to a server's Unix socket."""
    _, client = await asyncio.get_running_loop().create_unix_connection(Client, str(socket))
    try:
        yield client
    finally:
        client.close()


class Server(Protocol):
    """A running server: a socket and a process per worker."""

    sockets: Sequence[Path]
    pids: Sequence[int]

    def stop(self) -> object:
        """End it."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server with a client per worker."""

    clients: Sequence[Client]
    pids: Sequence[int]

    @classmethod
    async def of(cls, server: Server, exits: AsyncExitStack) -> Target:
        """Connect to `server`; `exits` disconnects and stops it."""
        exits.callback(server.stop)
        clients = [await exits.enter_async_context(connect(socket)) for socket in server.sockets]
        return cls(clients, server.pids)

    async def send(self, request: Exchange, count: int, at_once: int) -> int:
        """At least `count` streams, `at_once` per worker at a time; returns how many were sent."""
        share = -(-count // len(self.clients))
        await asyncio.gather(*(client.closed([request] * share, at_once) for client in self.clients))
        return share * len(self.clients)

    async def measure(
        self, samples: Samples, name: str, request: Exchange, count: int, at_once: int
    ) -> None:
        """Sample CPU milliseconds per stream and streams per second."""
        before, started = cpu_seconds(*self.pids), perf_counter()
        sent = await self.send(request, count, at_once)
        samples.add(f"{name} a second", sent / (perf_counter() - started))
        samples.add(f"{name} cpu ms", (cpu_seconds(*self.pids) - before) / sent * 1e3)

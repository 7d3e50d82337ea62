"""A client of the external processor that plays Envoy and leaves the CPU to the server.

HTTP/2 is libnghttp2's (`ngh2`): a stream costs a fifth of what a gRPC client in Python takes, so the rates
are the server's. h2load does not fit: it sends both messages at once, and does not read replies.
"""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import cast

from ngh2 import Configuration, Connection, Role, StreamProtocolError
from ngh2.events import ConnectionClosed, DataReceived, GoAwayReceived, StreamClosed

from semroute_bench.load import Exchange
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

HEADERS = (
    *((b":method", b"POST"), (b":scheme", b"http"), (b":path", f"/{SERVICE}/Process".encode())),
    *((b":authority", b"localhost"), (b"content-type", b"application/grpc"), (b"te", b"trailers")),
)


class ClientError(Exception):
    """A stream that ended without both replies, or a server that is gone or too slow."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to a body."""

    ms: float  # from the start of the stream to the reply to its body, as the client saw it
    reply: bytes  # the serialized `ProcessingResponse`; empty if none came

    @property
    def outcome(self) -> str:
        """`routed`, `fallback` …; empty if the reply states none."""
        fields = pb.ProcessingResponse.FromString(self.reply).dynamic_metadata.fields
        return fields["semroute"].struct_value.fields["outcome"].string_value


@dataclass(slots=True)
class _Stream:
    """One open stream."""

    body: bytes
    done: asyncio.Future[Answer]
    buffer: bytes = b""
    replies: int = 0
    started: float = field(default_factory=perf_counter)
    answer: Answer = Answer(0.0, b"")


class Client(asyncio.Protocol):
    """One connection to a server's Unix socket; made by `connect`."""

    def __init__(self) -> None:
        self._http2 = Connection(Role.CLIENT, Configuration(peer_max_concurrent_streams=10_000))
        self._streams: dict[int, _Stream] = {}
        self._loop = asyncio.get_running_loop()

    def send(self, request: Exchange) -> asyncio.Future[Answer]:
        """Start one stream; the future ends with it, or raises ClientError."""
        number = self._http2.send_request(HEADERS)
        self._http2.send_data(number, _message(request.headers))
        self._streams[number] = stream = _Stream(request.body, self._loop.create_future())
        self._flush()
        return stream.done

    async def closed(self, requests: Iterable[Exchange], at_once: int, limit: float = 300.0) -> list[Answer]:
        """Send every request, `at_once` at a time; raises ClientError, also after `limit` seconds."""
        waiting = iter(requests)

        async def take_turns() -> list[Answer]:
            return [await self.send(request) for request in waiting]

        try:
            async with asyncio.timeout(limit):
                found = await asyncio.gather(*(take_turns() for _ in range(at_once)))
        except TimeoutError:
            raise ClientError(f"the run took longer than {limit:g} s") from None
        return [answer for answers in found for answer in answers]

    async def open(self, request: Exchange, rate: float, seconds: float, last: float = 30.0) -> list[Answer]:
        """Poisson arrivals at `rate` per second, independent of earlier answers.

        Answers of streams that fail, or are missing `last` seconds after the last request, are empty.
        """
        draw, sent = random.Random(1), []
        start = at = perf_counter()
        while at - start < seconds:
            await asyncio.sleep(max(0.0, at - perf_counter()))
            sent.append(self.send(request))
            at += draw.expovariate(rate)
        done, _ = await asyncio.wait(sent, timeout=last)
        kept = {answer for answer in done if answer.exception() is None}
        return [answer.result() if answer in kept else Answer(0.0, b"") for answer in sent]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._http2.initiate_connection()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        for number in list(self._streams):
            self._end(number, f"the server closed the connection ({exc})")

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
        reply, stream.buffer = stream.buffer[5:size], stream.buffer[size:]
        stream.replies += 1
        if stream.replies == 1:
            self._http2.send_data(number, _message(stream.body))
        else:
            stream.answer = Answer((perf_counter() - stream.started) * 1e3, reply)
            with suppress(StreamProtocolError):  # the server has ended it
                self._http2.end_stream(number)

    def _end(self, number: int, why: str = "a stream ended") -> None:
        stream = self._streams.pop(number)
        if stream.done.done():
            return
        if stream.replies == 2:
            stream.done.set_result(stream.answer)
        else:
            stream.done.set_exception(ClientError(f"{why} after {stream.replies} replies"))

    def _flush(self) -> None:
        if data := self._http2.data_to_send():
            self._transport.write(data)


def _message(payload: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return struct.pack(">xI", len(payload)) + payload


@asynccontextmanager
async def connect(socket: Path) -> AsyncIterator[Client]:
    """A connection to a server's Unix socket."""
    transport, client = await asyncio.get_running_loop().create_unix_connection(Client, str(socket))
    try:
        yield client
    finally:
        transport.close()

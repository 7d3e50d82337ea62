"""A client of one gRPC method that costs next to nothing: frames of HTTP/2, made once and written.

It plays Envoy like `load.Client`, in the same order of messages, for a fifth of the CPU, so that on a
small machine the server is measured and not the client. RFC 9113 (frames, flow control) and RFC 7541
(literal header fields alone); no TLS, bodies of one frame, and the status of a stream is not read: a
stream is good when both its replies came.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import cast

from semroute_bench.load import PER_STREAM_SECONDS_MAX, Answer, Exchange
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4

FRAME_BYTES_MAX = 16_384
"""Largest payload that every peer takes."""

WINDOW_START = 65_535
"""Bytes that may be sent on a connection before its peer grants more."""

WINDOW_BYTES = 2**30
"""What we grant the server: more than the replies of any run until `GRANT_BYTES` of them came."""

GRANT_BYTES = 2**20
"""Received bytes after which the window is filled up again."""

SILENCE_SECONDS_MAX = 60.0
"""A server from which nothing comes for so long has failed."""


class WireError(Exception):
    """The server did not do what a do-nothing exchange needs."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def message(payload: bytes) -> bytes:
    """A gRPC message, uncompressed."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


def _text(value: str) -> bytes:
    assert len(value) < 127, "a longer string has a longer length. This is a bug."
    return bytes([len(value)]) + value.encode()


# Indices of HPACK's static table: POST 3, http 6, :path 4, :authority 1, content-type 31.
CALL = (
    b"\x83\x86\x04" + _text(f"/{SERVICE}/Process") + b"\x01" + _text("localhost")
    + b"\x0f\x10" + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
)  # fmt: skip

HELLO = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW_BYTES))
    + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BYTES))
)
"""Preface, a large window for every stream, and one for the connection."""


class _Stream:
    """One exchange under way."""

    __slots__ = ("answered", "body", "buffer", "ms", "replies")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.buffer = b""
        self.replies: list[bytes] = []
        self.answered = 0.0
        self.ms = 0.0


class Wire(asyncio.Protocol):
    """One connection to a server's Unix socket; made by `connect`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._window = WINDOW_START
        self._waiting: deque[bytes] = deque()
        """Messages for which the server has granted no window yet, oldest first."""
        self._received = 0
        self._next = 1
        self._open: dict[int, _Stream] = {}
        self._requests: Iterator[Exchange] = iter(())
        self._ms: list[float] = []
        self._seen: Callable[[bytes], None] = lambda _reply: None
        self._done: asyncio.Future[None] | None = None

    async def closed(
        self,
        requests: Iterable[Exchange],
        concurrency: int,
        seen: Callable[[bytes], None] = lambda _reply: None,
    ) -> list[float]:
        """Send every request, `concurrency` at a time; milliseconds of each from its body to the reply.

        `seen` takes each reply to a body, serialised. Raises WireError when a stream ends without its
        replies, or the server is silent or gone.
        """
        self._requests, self._ms, self._seen = iter(requests), [], seen
        self._done = asyncio.get_running_loop().create_future()
        for _ in range(concurrency):
            self._begin()
        done = -1
        while self._open and not self._done.done():
            if done == len(self._ms):
                raise WireError(f"nothing came for {SILENCE_SECONDS_MAX:g} s")
            done = len(self._ms)
            await asyncio.wait([self._done], timeout=SILENCE_SECONDS_MAX)
        if self._done.done():
            self._done.result()
        return self._ms

    async def open(self, request: Exchange, rate: float, seconds: float) -> list[Answer]:
        """Poisson arrivals at `rate` a second, whatever becomes of the earlier ones; what came of each.

        Raises WireError as `closed` does; streams that are never answered count as unanswered.
        """
        replies: list[bytes] = []
        self._requests, self._ms, self._seen = iter(()), [], replies.append
        self._done = asyncio.get_running_loop().create_future()
        draw, sent = random.Random(1), 0
        start = at = perf_counter()
        while at - start < seconds:
            await asyncio.sleep(max(0.0, at - perf_counter()))
            self._start(request)
            sent += 1
            at += draw.expovariate(rate)
        if self._open:
            # It was done whenever nobody was under way for a moment.
            if not self._done.done() or self._done.exception() is None:
                self._done = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._done], timeout=PER_STREAM_SECONDS_MAX)
        if self._done.done():
            self._done.result()
        answers = [Answer(ms, _outcome(reply)) for ms, reply in zip(self._ms, replies, strict=True)]
        return answers + [Answer(0.0, "")] * (sent - len(answers))

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._fail(f"the server closed the connection ({exc})")

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        buffer = self._buffer + data if self._buffer else data
        at, end = 0, len(buffer)
        while end - at >= 9:
            stop = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if stop > end:
                break
            stream = int.from_bytes(buffer[at + 5 : at + 9], "big")
            self._take(buffer[at + 3], buffer[at + 4], stream, buffer[at + 9 : stop])
            at = stop
        self._buffer = buffer[at:]

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == DATA:
            self._data(number, payload)
        if kind in (DATA, HEADERS) and flags & END_STREAM:
            self._end(number)
        elif kind == WINDOW_UPDATE and number == 0:
            self._window += int.from_bytes(payload, "big")
            self._flush()
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self._transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind in (GOAWAY, RST_STREAM):
            self._fail(f"the server ended {'the connection' if kind == GOAWAY else 'a stream'}")

    def _begin(self) -> None:
        """Start the next exchange if there is one."""
        request = next(self._requests, None)
        if request is not None:
            self._start(request)

    def _start(self, request: Exchange) -> None:
        number, self._next = self._next, self._next + 2
        self._open[number] = _Stream(frame(DATA, 0, number, message(request.body)))
        self._transport.write(frame(HEADERS, END_HEADERS, number, CALL))
        self._send(frame(DATA, 0, number, message(request.headers)))

    def _send(self, data: bytes) -> None:
        assert len(data) - 9 <= FRAME_BYTES_MAX, "a body of more than one frame. This is a bug."
        self._waiting.append(data)
        self._flush()

    def _flush(self) -> None:
        while self._waiting and self._window >= len(self._waiting[0]) - 9:
            data = self._waiting.popleft()
            self._window -= len(data) - 9
            self._transport.write(data)

    def _data(self, number: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > GRANT_BYTES:
            self._transport.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        stream = self._open.get(number)
        if stream is None:
            return
        stream.buffer += payload
        size = 5 + int.from_bytes(stream.buffer[1:5], "big")
        if len(stream.buffer) < max(size, 5):
            return
        stream.replies.append(stream.buffer[5:size])
        stream.buffer = stream.buffer[size:]
        now = perf_counter()
        if len(stream.replies) == 1:
            stream.answered = now
            self._send(stream.body)
        else:
            stream.ms = (now - stream.answered) * 1e3
            self._transport.write(frame(DATA, END_STREAM, number))

    def _end(self, number: int) -> None:
        stream = self._open.pop(number, None)
        if stream is None:
            return
        if len(stream.replies) != 2:
            self._fail(f"a stream ended after {len(stream.replies)} replies")
            return
        self._ms.append(stream.ms)
        self._seen(stream.replies[1])
        self._begin()
        if not self._open and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(WireError(why))


def _outcome(reply: bytes) -> str:
    fields = pb.ProcessingResponse.FromString(reply).dynamic_metadata.fields
    return fields["semroute"].struct_value.fields["outcome"].string_value


async def connect(socket: str) -> Wire:
    """A connection to a server's Unix socket."""
    _, protocol = await asyncio.get_running_loop().create_unix_connection(Wire, socket)
    return protocol

"""Hostile clients: requests that try to cost others their routing, over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import random
import zlib
from collections.abc import Iterator

ANSWER_SECONDS_MAX = 5.0
_NUMBERS = b'{"model": "small-model", "a": [' + b"0," * 4_000_000 + b"0]}"


def _post(body: bytes, *headers: str, declared: int | None = None) -> bytes:
    length = len(body) if declared is None else declared
    head = ["POST /v1/chat/completions HTTP/1.1", "host: a", "content-type: application/json"]
    head += [f"content-length: {length}", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def _chat(content: object = "hi", **more: object) -> bytes:
    return json.dumps(
        {"model": "auto-weak", "messages": [{"role": "user", "content": content}], **more}
    ).encode()


def _turns(count: int) -> bytes:
    return json.dumps({"model": "auto-weak", "messages": [{"role": "user", "content": "x"}] * count}).encode()


def _zipped(data: bytes) -> bytes:
    return _post(gzip.compress(data), "content-encoding: gzip")


def attacks(seed: int = 0) -> Iterator[bytes]:
    """Without end, each kind in turn."""
    draw = random.Random(seed)
    lists = b'{"model": "auto-weak", "prompt": [' + b"[]," * 3_000_000 + b"[]]}"
    kinds = [
        _zipped(lists),
        _zipped(b'{"model": "auto-weak", "tools": [' + b"0," * 3_000_000 + b"0]}"),
        _zipped(_chat("a" * 6_000_000)),
        _zipped(b" " * 60_000_000),
        _post(b"[" * 200_000),
        _post(b'{"a":' * 100_000),
        _post(_chat("<a" * 200_000)),
        _post(_chat("Q: a\n" * 100_000)),
        _post(_chat("\ud800")),
        _post(_chat("hi").decode().encode("utf-16")),
        _post(_chat(), "x-request-id: \xff\xfe"),
        _post(_chat(), f"x-request-id: {'r' * 20_000}"),
        _post(_chat(), *(f"x-{number}: {number}" for number in range(88))),
        _post(
            b'{"model": "small-model", "a": [' + b"0," * 4_000_000 + b"0]}",
            *(f"x-{n}: {n}" for n in range(110)),
        ),
        _zipped(_turns(9_000)),
        _post(_chat(stream=True, max_tokens=2_000)),  # the answer is not read to its end
        _post(_chat(), "x-semroute-cluster: vllm-large", "x-envoy-original-dst-host: 127.0.0.1:1"),
        _post(b"{", declared=10_000),  # the rest never comes
        _post(b"\x1f\x8b" + zlib.compress(b"x" * 1_000), "content-encoding: gzip"),
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v1/chat/completions HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ]
    for number in itertools.count():
        yield kinds[number] if number < len(kinds) else draw.choice(kinds)


async def attack(port: int, request: bytes) -> None:
    """Send one, and wait for an answer, an end, or some seconds."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await writer.drain()
                await reader.read(65_536)
        finally:
            writer.transport.abort()

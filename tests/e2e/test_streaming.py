"""Answers pass through as they come, and as they are."""

from __future__ import annotations

import re
import time

import aiohttp
from gateway import Gateway, chat
from semroute_demo.pool import Fault, Speed


async def test_events_arrive_while_the_answer_is_still_being_made(
    client: aiohttp.ClientSession, gateway: Gateway, monkeypatch
) -> None:
    monkeypatch.setattr(gateway.small, "speed", Speed(first_token_seconds=0.05, token_seconds=0.02))
    arrivals: list[float] = []
    async with client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=40)) as response:
        async for _ in response.content.iter_any():
            arrivals.append(time.monotonic())
    # 40 tokens at 20 ms: an answer that was held back would come at once, at the end.
    assert len(arrivals) >= 20
    assert arrivals[-1] - arrivals[0] > 0.5


async def test_answers_that_are_not_read_hold_no_stream_of_the_sidecar(
    client: aiohttp.ClientSession, gateway: Gateway, monkeypatch
) -> None:
    monkeypatch.setattr(gateway.small, "speed", Speed(first_token_seconds=0.01, token_seconds=0.05))
    failed = gateway.counter("streams_failed")
    answers = [
        await client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=40)) for _ in range(20)
    ]
    [sidecar] = gateway.sidecars
    assert "semroute_inflight_streams 0.0" in sidecar.read_admin("/metrics")[1]
    for answer in answers:
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    assert gateway.counter("streams_failed") == failed


async def test_a_stream_is_the_pools_own_byte_for_byte(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    headers = {"x-request-id": "the-same"}
    body = chat(model="small-model", stream=True, stream_options={"include_usage": True})
    async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
        through = await response.read()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{gateway.small.port}") as direct,
        direct.post("/v1/chat/completions", json=body, headers=headers) as response,
    ):
        expected = await response.read()
    assert through.endswith(b"data: [DONE]\n\n")
    assert _timeless(through) == _timeless(expected)


async def test_a_stream_that_breaks_breaks_for_the_client_too(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    """Once it has begun nothing is retried and nothing is invented."""
    gateway.small.faults.append(Fault(drop_after=3))
    content = b""
    try:
        async with client.post("/v1/chat/completions", json=chat(stream=True)) as response:
            async for piece in response.content.iter_any():
                content += piece
        ended_well = True
    except aiohttp.ClientPayloadError:
        ended_well = False
    assert not ended_well
    assert content.count(b"data: ") == 3
    assert len(gateway.small.received) == 1


def _timeless(content: bytes) -> bytes:
    return re.sub(rb'"created": \d+', b'"created": 0', content)

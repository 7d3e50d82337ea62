"""A real vLLM ends in the middle of a stream: what the client sees, and that nothing else breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from gateway import Gateway, chat, wait_for
from semroute_demo.sidecar import Sidecar
from servers import Pools

TOKENS = 3_000
"""So many take a server seconds."""

SILENCE_SECONDS = 30
"""A stream that its server has left must end by then, or counts as silent."""


async def test_killed_with_all_its_processes_the_stream_breaks_off(
    client: aiohttp.ClientSession, gateway: Gateway, pools: Pools, sidecar: Sidecar
) -> None:
    """The client is told by the connection that the answer is not whole; nothing is retried or invented."""
    content = bytearray()
    with pytest.raises(aiohttp.ClientPayloadError):
        await _read(client, pools.small.kill, content)
    assert b'"content"' in content
    assert b"[DONE]" not in content
    await _only_the_dead_pool_fails(client, gateway, sidecar)
    await _serves_again(client, gateway, pools)


async def test_with_its_engine_killed_the_stream_ends_with_an_error_event(
    client: aiohttp.ClientSession, gateway: Gateway, pools: Pools, sidecar: Sidecar
) -> None:
    """The status was sent long before: for Envoy this is a success, only the last event tells."""
    events = await _events(client, pools.small.kill_engine)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == 500
    await asyncio.to_thread(pools.small.process.wait, 60)
    await _only_the_dead_pool_fails(client, gateway, sidecar)
    await _serves_again(client, gateway, pools)


async def test_told_to_stop_it_ends_the_stream_or_leaves_it_silent(
    client: aiohttp.ClientSession, gateway: Gateway, pools: Pools, sidecar: Sidecar
) -> None:
    """vLLM 0.32 aborts its requests and then waits for open connections, which get no more data.

    Whether the abort still reaches the client is a race within vLLM. A client must have a timeout of its
    own; whatever it does, only this pool is gone.
    """
    content = bytearray()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SILENCE_SECONDS):
            await _read(client, lambda: pools.small.process.send(signal.SIGTERM), content)
            assert b'"finish_reason":"abort"' in content
            assert content.rstrip().endswith(b"[DONE]")
    assert b'"content"' in content
    pools.small.kill()
    await _only_the_dead_pool_fails(client, gateway, sidecar)
    await _serves_again(client, gateway, pools)


@contextlib.asynccontextmanager
async def _streaming(client: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientResponse]:
    body = {**chat("Tell me everything.", "auto-weak"), "stream": True}
    async with client.post(
        "/v1/chat/completions", json={**body, "max_tokens": TOKENS, "ignore_eos": True}
    ) as response:
        assert response.status == 200
        yield response


async def _read(client: aiohttp.ClientSession, end: Callable[[], None], content: bytearray) -> None:
    """Read a stream into `content`; its server meets its `end` after the first piece."""
    async with _streaming(client) as response:
        async for piece in response.content.iter_any():
            if not content:
                end()
            content += piece


async def _events(client: aiohttp.ClientSession, end: Callable[[], None]) -> list[str]:
    """The data of the events of such a stream."""
    content = bytearray()
    await _read(client, end, content)
    return [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]


async def _only_the_dead_pool_fails(
    client: aiohttp.ClientSession, gateway: Gateway, sidecar: Sidecar
) -> None:
    async with client.post("/v1/chat/completions", json=_short("auto-strong")) as response:
        assert response.status == 200
    async with client.post("/v1/chat/completions", json=_short("auto-weak")) as response:
        error = (await response.json())["error"]
    assert response.status == 503
    assert response.headers["x-semroute-pool"] == "small"
    assert response.headers["retry-after"] == "1"
    assert error["code"] == "service_unavailable"
    assert sidecar.ready()
    assert gateway.envoy.healthy("semroute")
    assert gateway.envoy.read_admin("/ready").strip() == "LIVE"


async def _serves_again(client: aiohttp.ClientSession, gateway: Gateway, pools: Pools) -> None:
    """Started again on its port, the server gets requests without anything else being touched."""
    await asyncio.to_thread(pools.ensure)
    await asyncio.to_thread(wait_for, lambda: gateway.envoy.healthy("vllm-small"), 60, "vllm-small")
    async with client.post("/v1/chat/completions", json=_short("auto-weak")) as response:
        assert response.status == 200
        assert (await response.json())["model"] == "small-model"


def _short(model: str) -> dict[str, object]:
    return {**chat("Hello", model), "max_tokens": 2}

"""A real vLLM's gauges under load, read by the sidecar, and what it answers when it has too much."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from gateway import Gateway, chat
from semroute_demo.sidecar import Sidecar
from servers import QUEUE, SEQUENCES, Pools
from settings import HAS_CONTROLLERS

WAIT_SECONDS_MAX = 180.0
LONG = {"max_tokens": 1_800, "ignore_eos": True}
"""Four of them fill most of the server's cache."""


async def test_the_sidecar_exports_the_gauges_that_vllm_reports_under_load(
    client: aiohttp.ClientSession, sidecar: Sidecar
) -> None:
    assert await _until(sidecar, lambda load: load.get("running") == 0 and load.get("waiting") == 0)
    async with _busy(client, SEQUENCES + 3):
        busy = await _until(sidecar, lambda load: load["running"] == SEQUENCES and load["waiting"] >= 1)
        full = await _until(sidecar, lambda load: load["kv_cache_usage"] > 0.1)
    assert busy["waiting"] <= 3
    assert full["kv_cache_usage"] <= 1
    quiet = await _until(sidecar, lambda load: set(load.values()) == {0})
    assert set(quiet) == {"running", "waiting", "kv_cache_usage"}


PROMPTS = (
    "Hi!",
    "Thanks, see you.",
    "What time is it in Paris?",
    "Name three fruits.",
    "Translate 'good morning' into French.",
    "Write a haiku about rain.",
    "Explain what a mutex is.",
    "Summarise the plot of Hamlet in five sentences.",
    "Write a SQL query for the second highest salary in each department.",
    "Prove that the square root of two is irrational.",
    "Derive the posterior of a normal mean under an unknown variance.",
    "Design a lock-free queue for many producers and prove that it is linearisable.",
)
"""From easy to hard."""


@pytest.mark.skipif(not HAS_CONTROLLERS, reason="no load controller yet")
async def test_vllms_own_gauges_move_the_easier_requests_away_from_a_busy_pool_and_back(
    client: aiohttp.ClientSession, sidecar: Sidecar
) -> None:
    quiet, _ = await _strong(client)
    assert 2 <= len(quiet) < len(PROMPTS)
    async with _busy(client, 2 * SEQUENCES, "auto-strong"):
        await _wait(lambda: _pressure(sidecar) > 0.9)
        pressed, reasons = await _strong(client)
    assert set(pressed) < set(quiet)
    assert any("load" in reason for reason in reasons)
    await _wait(lambda: _pressure(sidecar) == 0)
    assert (await _strong(client))[0] == quiet


async def _strong(client: aiohttp.ClientSession) -> tuple[list[str], list[str]]:
    """Which of the prompts the large pool gets, and the reasons of all.

    The decision is what matters: the answer of a pool that is busy is not waited for.
    """
    found, reasons = [], []
    for prompt in PROMPTS:
        body = {**chat(prompt, "auto-even"), "max_tokens": 1, "stream": True}
        async with client.post("/v1/chat/completions", json=body) as response:
            reasons.append(response.headers["x-semroute-reason"])
            if response.headers["x-semroute-pool"] == "large":
                found.append(prompt)
    return found, reasons


def _pressure(sidecar: Sidecar) -> float:
    page = sidecar.read_admin("/metrics")[1]
    found = re.search(r'^semroute_pool_pressure\{pool="large"\} (\S+)$', page, re.M)
    return float(found[1]) if found else 0.0


async def test_a_client_that_leaves_frees_its_place_in_the_server(
    client: aiohttp.ClientSession, pools: Pools
) -> None:
    async with _busy(client, 1):
        await _wait(lambda: pools.small.load()["running"] == 1)
    await _wait(lambda: pools.small.load()["running"] == 0)


async def test_a_full_server_answers_503_which_reaches_the_client_after_retries(
    client: aiohttp.ClientSession, gateway: Gateway, pools: Pools
) -> None:
    """vLLM's own body, with no retry-after; the other pool is not touched, the decision stands."""
    async with _busy(client, QUEUE):
        await _wait(lambda: pools.small.load()["running"] == SEQUENCES)
        await _wait(lambda: sum(pools.small.load().get(name, 0) for name in ("running", "waiting")) >= QUEUE)
        refused = await _refused(client)
        async with client.post("/v1/chat/completions", json=_short("auto-strong")) as response:
            assert response.status == 200
    assert refused.headers["x-semroute-pool"] == "small"
    assert "retry-after" not in refused.headers
    error = (await refused.json())["error"]
    assert error["code"] == 503
    assert gateway.logged(refused.headers["x-request-id"])["attempts"] == 3
    await _wait(lambda: pools.small.load()["running"] == 0)
    async with client.post("/v1/chat/completions", json=_short("auto-weak")) as response:
        assert response.status == 200


async def _refused(client: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    """The first 503; a place may be free for a moment when one of the long requests ends."""
    for _ in range(20):
        async with client.post("/v1/chat/completions", json=_short("auto-weak")) as response:
            await response.read()
        if response.status != 200:
            assert response.status == 503
            return response
    raise AssertionError("a full server took twenty requests")


def _short(model: str) -> dict[str, object]:
    return {**chat("Hello", model), "max_tokens": 2}


@contextlib.asynccontextmanager
async def _busy(
    client: aiohttp.ClientSession, requests: int, model: str = "auto-weak"
) -> AsyncIterator[None]:
    """So many long requests to a pool, the small one unless told, at any time; leaving ends them."""

    async def again() -> None:
        while True:
            body = {**chat("Tell me everything.", model), **LONG}
            async with client.post("/v1/chat/completions", json=body) as response:
                await response.read()

    tasks = [asyncio.create_task(again()) for _ in range(requests)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(sidecar: Sidecar, met: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The small pool's load on the sidecar's metrics page, once it is as wanted."""
    seen: list[dict[str, float]] = [{}]

    def look() -> bool:
        page = sidecar.read_admin("/metrics")[1]
        lines = re.findall(r'^semroute_pool_load\{gauge="(\w+)",pool="small"\} (\S+)$', page, re.M)
        seen.append({gauge: float(value) for gauge, value in lines})
        return len(seen[-1]) == 3 and met(seen[-1])

    await _wait(look)
    return seen[-1]


async def _wait(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not await asyncio.to_thread(met):
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS_MAX} s in vain"
        await asyncio.sleep(0.2)

"""Controllers behind the real Envoy: load that shifts traffic and gives it back, conversations, shadows."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway import Background, Gateway, chat
from semroute_demo.pool import Pool, Speed
from semroute_demo.sidecar import Sidecar

EASY = "What is the capital of Australia?"
BUSY_CLIENTS = 16
"""Clients of the strong pool's own, in front of its two slots."""

SHIFT_SECONDS_MAX = 45.0
"""Two scrapes and a few time constants, on a machine that may be busy."""

Make = Callable[..., Any]


@asynccontextmanager
async def busy(pool: Pool) -> AsyncIterator[None]:
    """Requests to the pool that do not come through the gateway, more than it can serve."""
    stop = asyncio.Event()

    async def client() -> None:
        async with aiohttp.ClientSession() as session:
            while not stop.is_set():
                url = f"http://127.0.0.1:{pool.port}/v1/chat/completions"
                async with session.post(url, json=chat(model="large-model", max_tokens=1)) as response:
                    await response.read()

    tasks = [asyncio.create_task(client()) for _ in range(BUSY_CLIENTS)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


@pytest.fixture
def strong() -> Iterator[Pool]:
    """A strong pool of the test's own, with two slots."""
    background = Background()
    pool = Pool("large", ("large-model",), Speed(0.2, 0.0, slots=2))
    background.run(pool.start())
    yield pool
    background.run(pool.stop())
    background.close()


async def ask(session: aiohttp.ClientSession, model: str = "auto-strong", **headers: str) -> Any:
    """The reply's headers."""
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    async with session.post(
        "/v1/chat/completions", json=chat(EASY, model, max_tokens=1), headers=given
    ) as response:
        await response.read()
        assert response.status == 200
        return response.headers


async def until(session: aiohttp.ClientSession, pool: str) -> Any:
    """Ask until `pool` answers; the headers of its answer."""
    deadline = time.monotonic() + SHIFT_SECONDS_MAX
    while (headers := await ask(session))["x-sim-pool"] != pool:
        assert time.monotonic() < deadline, f"{pool} never answered"
        await asyncio.sleep(0.2)
    return headers


async def test_a_pressed_strong_pool_gives_its_easy_requests_away_and_quiet_brings_them_back(
    make_gateway: Make, make_sidecar: Callable[..., Sidecar], strong: Pool
) -> None:
    sidecar = make_sidecar(
        POOLS__LARGE__METRICS=f"http://127.0.0.1:{strong.port}/metrics",
        CONTROLLERS__LOAD="{rise_seconds: 1, fall_seconds: 2}",
    )
    gateway: Gateway = make_gateway([sidecar], addresses={"vllm-large": ("127.0.0.1", strong.port)})
    async with aiohttp.ClientSession(gateway.url) as session:
        assert (await ask(session))["x-sim-pool"] == "large"
        async with busy(strong):
            shifted = await until(session, "small")
            assert "load share 1.00 to " in shifted["x-semroute-reason"]
            status = json.loads(sidecar.read_admin("/controllers")[1])
            assert status["pools"]["large"]["pressure"] > 0.1
            assert 'semroute_pool_pressure{pool="large"}' in sidecar.read_admin("/metrics")[1]
        quiet = await until(session, "large")
        assert quiet["x-semroute-pool"] == "large"


async def test_a_scrape_target_that_is_dead_is_counted_and_presses_nothing(
    make_gateway: Make, make_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = make_sidecar(POOLS__LARGE__METRICS="http://127.0.0.1:9/metrics", CONTROLLERS__LOAD="{}")
    gateway: Gateway = make_gateway([sidecar])
    async with aiohttp.ClientSession(gateway.url) as session:
        assert (await ask(session))["x-sim-pool"] == "large"
    assert 'semroute_pool_scrape_failures_total{pool="large"}' in sidecar.read_admin("/metrics")[1]
    assert not json.loads(sidecar.read_admin("/controllers")[1])["pools"]["large"]["known"]


async def test_a_named_conversation_keeps_its_pool_in_a_tool_loop_and_with_state(
    make_gateway: Make, make_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = make_sidecar(
        CONTROLLERS__SESSION="{}", STRATEGIES__PAIR="{kind: weighted, weights: {small: 1, large: 1}}"
    )
    gateway: Gateway = make_gateway([sidecar])
    turns = chat(EASY, "auto")["messages"]
    turns += [
        {"role": "assistant", "content": "Looking."},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    loop = {"model": "auto", "messages": turns, "max_tokens": 1}
    later = {"model": "auto", "input": "And?", "previous_response_id": "resp_1", "max_output_tokens": 16}
    async with aiohttp.ClientSession(gateway.url) as session:
        for number in range(4):
            named = {"x-semroute-session": f"conversation-{number}"}
            first = await ask(session, "auto", x_semroute_session=named["x-semroute-session"])
            for path, body in (("/v1/chat/completions", loop), ("/v1/responses", later)):
                request_id = str(uuid.uuid4())
                headers = {**named, "x-request-id": request_id}
                async with session.post(path, json=body, headers=headers) as response:
                    await response.read()
                    assert response.headers["x-sim-pool"] == first["x-sim-pool"]
                assert gateway.logged(request_id)["semroute"]["session"] == "locked"
    assert 'semroute_sessions_total{result="locked"} 8.0' in sidecar.read_admin("/metrics")[1]


async def test_a_shared_memory_that_is_dead_is_counted_and_the_request_decided(
    make_gateway: Make, make_sidecar: Callable[..., Sidecar]
) -> None:
    pytest.importorskip("redis", reason="needs the extra valkey")
    store = "{url: 'valkey://127.0.0.1:9/0', key: 0123456789abcdef, replicas: 1}"
    sidecar = make_sidecar(CONTROLLERS__SESSION="{}", CONTROLLERS__STORE=store)
    gateway: Gateway = make_gateway([sidecar])
    async with aiohttp.ClientSession(gateway.url) as session:
        for _ in range(8):
            headers = await ask(session)
            assert (headers["x-sim-pool"], headers["x-semroute-outcome"]) == ("large", "routed")
    assert "semroute_shared_store_errors_total{" in sidecar.read_admin("/metrics")[1]


async def test_shadows_and_canaries_are_in_the_access_log(
    make_gateway: Make, make_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = make_sidecar(
        POLICIES__STRONG__SHADOW="[weak, main]",
        MODELS__AUTO="{policy: strong, canary: {weak: 0.5}}",
    )
    gateway: Gateway = make_gateway([sidecar])
    seen: dict[str, set[str]] = {}
    async with aiohttp.ClientSession(gateway.url) as session:
        for _ in range(24):
            request_id = str(uuid.uuid4())
            pools = [(await ask(session, "auto", x_request_id=request_id))["x-sim-pool"] for _ in range(2)]
            assert pools[0] == pools[1], "a retry goes where the first try went"
            facts = gateway.logged(request_id)["semroute"]
            seen.setdefault(facts["policy"], set()).add(pools[0])
            if facts["policy"] == "strong":
                assert facts["shadow"].split()[0] == "weak=small"
    assert seen == {"strong": {"large"}, "weak": {"small"}}
    metrics = sidecar.read_admin("/metrics")[1]
    labels = 'agreement="differ",policy="strong",pool="small",shadow="weak"'
    assert f"semroute_shadow_decisions_total{{{labels}}}" in metrics

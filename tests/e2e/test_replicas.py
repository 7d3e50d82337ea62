"""Conversations on two replicas of one pool, behind the shipped Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import aiohttp
import pytest
from gateway import Background, Gateway, chat
from semroute_demo.envoy import Bootstrap, clusters
from semroute_demo.pool import Pool, Speed
from semroute_demo.sidecar import Sidecar

CONVERSATIONS = 12
"""All on one of two replicas with a probability of 1 in 2,048."""

Make = Callable[..., Any]


@pytest.fixture
def background() -> Iterator[Background]:
    running = Background()
    yield running
    running.close()


@pytest.fixture
def replicas(background: Background) -> Iterator[Sequence[Pool]]:
    running = [Pool(f"large-{n}", ("large-model",), Speed(0.005, 0.0, slots=64)) for n in range(2)]
    for pool in running:
        background.run(pool.start())
    yield running
    for pool in running:
        background.run(pool.stop())


@pytest.fixture(params=["the pool's cluster", "the cluster with failover"])
def gateway(
    request: pytest.FixtureRequest,
    make_gateway: Make,
    make_sidecar: Callable[..., Sidecar],
    replicas: Sequence[Pool],
) -> Gateway:
    def both(bootstrap: Bootstrap) -> None:
        places = [{"address": "127.0.0.1", "port_value": pool.port} for pool in replicas]
        ends = [{"endpoint": {"address": {"socket_address": place}}} for place in places]
        clusters(bootstrap)["vllm-large"]["load_assignment"]["endpoints"] = [{"lb_endpoints": ends}]

    failover = {"CONTROLLERS__FAILOVER": "{}"} if "failover" in request.param else {}
    started: Gateway = make_gateway([make_sidecar(CONTROLLERS__SESSION="{}", **failover)], edit=both)
    return started


async def replica(session: aiohttp.ClientSession, path: str, body: Any, **headers: str) -> str:
    """The replica that answered."""
    given = {key.replace("_", "-"): value for key, value in headers.items()}
    async with session.post(path, json=body, headers=given) as response:
        await response.read()
        return response.headers["x-sim-pool"]


def upstream(gateway: Gateway, response: aiohttp.ClientResponse) -> int:
    """The port of the replica that a request went to; the simulated ones answer 404 to some paths."""
    line = gateway.logged(response.headers["x-request-id"])
    return int(line["upstream"].rpartition(":")[2])


async def test_a_conversation_keeps_its_replica_by_its_words_or_its_name(
    gateway: Gateway, replicas: Sequence[Pool]
) -> None:
    async with aiohttp.ClientSession(gateway.url) as session:
        by_words, by_name = [], []
        for n in range(CONVERSATIONS):
            first = chat(f"Question {n}?", "auto-strong", max_tokens=1)
            later = chat(f"Question {n}?", "auto-strong", max_tokens=1)
            later["messages"].insert(0, {"role": "system", "content": f"cch={n}; be brief"})
            later["messages"] += [{"role": "assistant", "content": "So."}]
            later["messages"] += [{"role": "user", "content": "Why?"}]
            path = "/v1/chat/completions"
            by_words.append([await replica(session, path, each) for each in (first, later)])
            named = {"x_claude_code_session_id": f"session {n}"}
            bodies = [chat(text, "auto-strong", max_tokens=1) for text in ("One?", "Two?")]
            by_name.append([await replica(session, path, each, **named) for each in bodies])
    for kept in (by_words, by_name):
        assert all(first == later for first, later in kept)
        assert {first for first, _ in kept} == {"large-0", "large-1"}
    sent = [each.headers.get("x-semroute-affinity", "") for pool in replicas for each in pool.received]
    assert {len(key) for key in sent if key} == {16}


async def test_a_conversation_of_a_dead_replica_goes_to_another_one_of_its_pool(
    gateway: Gateway, background: Background, replicas: Sequence[Pool]
) -> None:
    bodies = [chat(f"Question {n}?", "auto-strong", max_tokens=1) for n in range(CONVERSATIONS)]
    dead, alive = replicas
    async with aiohttp.ClientSession(gateway.url) as session:
        before = [await replica(session, "/v1/chat/completions", each) for each in bodies]
        await asyncio.to_thread(background.run, dead.stop())
        after = [await replica(session, "/v1/chat/completions", each) for each in bodies]
    assert dead.name in before
    assert set(after) == {alive.name}


async def test_a_client_cannot_choose_a_replica(gateway: Gateway) -> None:
    async with aiohttp.ClientSession(gateway.url) as session:
        body = chat("The same words?", "auto-strong", max_tokens=1)
        chosen = [
            await replica(session, "/v1/chat/completions", body, x_semroute_affinity=str(n))
            for n in range(CONVERSATIONS)
        ]
    assert len(set(chosen)) == 1


async def test_a_chain_of_responses_and_its_stored_ones_stay_where_they_are_stored(
    gateway: Gateway, replicas: Sequence[Pool]
) -> None:
    async with aiohttp.ClientSession(gateway.url) as session:
        for n in range(CONVERSATIONS):
            body = {"model": "auto-strong", "input": f"Question {n}?", "max_output_tokens": 1}
            first = await replica(session, "/v1/responses", body)
            home = next(pool for pool in replicas if pool.name == first)
            issued = json.loads(home.received[-1].body)["request_id"]
            body = {"model": "auto-weak", "input": "Why?", "previous_response_id": issued}
            assert await replica(session, "/v1/responses", body) == first
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
                async with session.request(method, f"/v1/responses/{issued}{path}") as response:
                    assert response.headers["x-semroute-pool"] == "large"
                    assert upstream(gateway, response) == home.port

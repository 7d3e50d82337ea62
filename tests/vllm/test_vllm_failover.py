"""A real vLLM that refuses a request or is gone: the other one answers, under its own model's name."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.error
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from gateway import Gateway, chat
from semroute_demo.envoy import shipped
from semroute_demo.sidecar import Sidecar
from servers import CONTEXTS, QUEUE, Pools
from test_vllm_clients import BODIES

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
SENTENCE = "The regional registrar's quarterly reconciliation of unallocated identifiers. "
BACK_SECONDS_MAX = 60


@pytest.fixture(scope="module")
def standard(gateway_of_clients: Gateway, pools: Pools) -> Iterator[Gateway]:
    yield gateway_of_clients
    pools.ensure()


@pytest.fixture
def gateway(standard: Gateway) -> Gateway:
    """As the servers are: a test says which of them it needs."""
    return standard


@pytest.fixture
def both(pools: Pools) -> Pools:
    pools.ensure()
    return pools


@pytest.fixture
def without_small(pools: Pools) -> Pools:
    """The small pool's server is killed, once for all tests that want it so."""
    pools.large.ensure()
    if pools.small.ready():
        pools.small.kill()
    return pools


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_prompt_that_vllm_finds_too_long_is_answered_by_the_pool_with_more_context(
    client: aiohttp.ClientSession, both: Pools, sidecar_of_clients: Sidecar, path: str, stream: bool
) -> None:
    """The tiny tokenizer makes more tokens of it than the sidecar's estimate allows for."""
    prompt = _longer_than(both, CONTEXTS["small"])
    before = _failovers(sidecar_of_clients, "context")
    body = {**_with_text(path, prompt), "model": "auto-weak", "stream": stream}
    response, content = await _send(client, path, body)
    assert response.status == 200, content
    assert response.headers["x-semroute-pool"] == "large"
    assert response.headers["x-semroute-reason"].startswith("small failed (context): ")
    assert _model_in(content, stream) == "large-model"
    assert _failovers(sidecar_of_clients, "context") == before + 1


@pytest.mark.parametrize("path", PATHS)
def test_envoy_knows_vllms_words_for_a_prompt_or_a_limit_beyond_the_context(both: Pools, path: str) -> None:
    known = re.findall(r'text:find\("([^"]+)"', json.dumps(shipped()).replace('\\"', '"'))
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    too_long = _with_text(path, _longer_than(both, CONTEXTS["small"]))
    for body in (too_long, {**BODIES[path], limit: CONTEXTS["small"] + 1}):
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            both.small.ask(path, {"model": "small-model", **body})
        error = refused.value.read().decode()
        assert any(words in error for words in known), error


async def test_a_named_model_gets_its_own_error_instead_of_another_model(
    client: aiohttp.ClientSession, both: Pools
) -> None:
    body = {**chat(_longer_than(both, CONTEXTS["small"]), "small-model"), "max_tokens": 2}
    response, content = await _send(client, "/v1/chat/completions", body)
    assert (response.status, response.headers["x-semroute-pool"]) == (400, "small")
    assert b"maximum context length is 4096 tokens" in content


async def test_a_full_server_hands_its_requests_to_the_other_pool(
    client: aiohttp.ClientSession, both: Pools, sidecar_of_clients: Sidecar
) -> None:
    """vLLM's 503 is tried twice: another replica might have had room."""
    before = _failovers(sidecar_of_clients, "503")
    async with _full(client, both):
        response, content = await _send(client, "/v1/chat/completions", _short("auto-weak"))
    assert response.status == 200, content
    assert response.headers["x-semroute-reason"].startswith("small failed (503): ")
    assert json.loads(content)["model"] == "large-model"
    assert _failovers(sidecar_of_clients, "503") > before


async def test_a_killed_servers_requests_go_to_the_other_pool_at_once(
    client: aiohttp.ClientSession, both: Pools, sidecar_of_clients: Sidecar
) -> None:
    await _again_from_small(client)
    before = _failovers(sidecar_of_clients, "unreachable")
    both.small.kill()
    response, content = await _send(client, "/v1/chat/completions", _short("auto-weak"))
    assert response.status == 200, content
    assert response.headers["x-semroute-reason"].startswith("small failed (unreachable): ")
    assert json.loads(content)["model"] == "large-model"
    assert _failovers(sidecar_of_clients, "unreachable") == before + 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
async def test_while_it_is_dead_every_api_is_answered_by_the_other_pool(
    client: aiohttp.ClientSession, without_small: Pools, path: str, stream: bool
) -> None:
    response, content = await _send(
        client, path, {**BODIES[path], "model": "claude-haiku-4-5", "stream": stream}
    )
    assert response.status == 200, content
    assert response.headers["x-semroute-pool"] == "large"
    assert _model_in(content, stream) == "large-model"


async def test_while_it_is_dead_its_own_name_is_not_answered_by_another_model(
    client: aiohttp.ClientSession, without_small: Pools
) -> None:
    response, _ = await _send(client, "/v1/chat/completions", _short("small-model"))
    assert (response.status, response.headers["x-semroute-pool"]) == (503, "small")


async def test_back_on_its_port_it_is_used_again_by_itself(
    client: aiohttp.ClientSession, without_small: Pools
) -> None:
    await asyncio.to_thread(without_small.ensure)
    await _again_from_small(client)


async def test_a_follow_up_of_a_response_is_not_answered_by_a_pool_that_does_not_know_it(
    client: aiohttp.ClientSession, both: Pools
) -> None:
    await _again_from_small(client)
    _, content = await _send(client, "/v1/responses", {**BODIES["/v1/responses"], "model": "auto-weak"})
    both.small.kill()
    follow_up = {**BODIES["/v1/responses"], "previous_response_id": json.loads(content)["id"]}
    response, _ = await _send(client, "/v1/responses", {**follow_up, "model": "auto-weak"})
    assert (response.status, response.headers["x-semroute-pool"]) == (503, "small")


def _short(model: str) -> dict[str, Any]:
    return {**chat("Hello", model), "max_tokens": 2}


def _with_text(path: str, text: str) -> dict[str, Any]:
    """The path's body with `text` for its prompt."""
    member = next(name for name in ("messages", "prompt", "input") if name in BODIES[path])
    return {**BODIES[path], member: chat(text)["messages"] if member == "messages" else text}


def _longer_than(pools: Pools, tokens: int) -> str:
    """A prompt of a few more tokens than `tokens`."""
    each = int(pools.small.ask("/tokenize", {"prompt": SENTENCE * 10})["count"]) / 10
    return SENTENCE * round((tokens + 100) / each)


async def _send(
    client: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> tuple[aiohttp.ClientResponse, bytes]:
    async with client.post(path, json=body) as response:
        return response, await response.read()


def _model_in(content: bytes, stream: bool) -> str:
    """The model that an answer, or a stream's first event, says it is of."""
    text = content.decode()
    first = next(line[6:] for line in text.splitlines() if line.startswith("data: ")) if stream else text
    found: dict[str, Any] = json.loads(first)
    return str((found.get("message") or found.get("response") or found)["model"])


def _failovers(sidecar: Sidecar, failure: str) -> float:
    """How many requests the small pool has failed in this way and the large pool got."""
    labels = re.escape(f'{{failure="{failure}",pool="small",to="large"}}')
    found = re.search(rf"^semroute_failovers_total{labels} (\S+)$", sidecar.read_admin("/metrics")[1], re.M)
    return float(found[1]) if found else 0.0


async def _again_from_small(client: aiohttp.ClientSession) -> None:
    """Wait until the small pool answers."""
    async with asyncio.timeout(BACK_SECONDS_MAX):
        while True:
            response, content = await _send(client, "/v1/chat/completions", _short("auto-weak"))
            assert response.status == 200, content
            if response.headers["x-semroute-pool"] == "small":
                return
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def _full(client: aiohttp.ClientSession, pools: Pools) -> AsyncIterator[None]:
    """As many long requests to the small server as it holds."""
    body = {**chat("Tell me everything.", "small-model"), "max_tokens": 3_000, "ignore_eos": True}
    tasks = [asyncio.create_task(_send(client, "/v1/chat/completions", body)) for _ in range(QUEUE)]
    try:
        async with asyncio.timeout(BACK_SECONDS_MAX):
            while sum((await asyncio.to_thread(pools.small.load)).values()) < QUEUE:
                await asyncio.sleep(0.1)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

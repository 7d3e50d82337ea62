"""Every routed API of a real vLLM works through Envoy and the sidecar, streamed and not."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
import pytest
from gateway import Gateway, chat
from semroute_demo.client import usage
from servers import Pools

TOKENS = 12
TEXT = "What is the capital of Australia?"
USAGE = {"stream_options": {"include_usage": True}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": chat(TEXT)["messages"], "max_tokens": TOKENS},
    "/v1/completions": {"prompt": TEXT, "max_tokens": TOKENS},
    "/v1/responses": {"input": TEXT, "max_output_tokens": TOKENS},
    "/v1/messages": {"messages": chat(TEXT)["messages"], "max_tokens": TOKENS},
}
LAST = {
    "/v1/chat/completions": "[DONE]",
    "/v1/completions": "[DONE]",
    "/v1/responses": "response.completed",
    "/v1/messages": "message_stop",
}
"""What the last event of a stream says."""


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("model", "pool"), [("auto-weak", "small"), ("auto-strong", "large")])
async def test_a_routed_request_is_answered_by_the_model_of_its_pool(
    client: aiohttp.ClientSession, path: str, model: str, pool: str
) -> None:
    async with client.post(path, json={"model": model, "temperature": 0, **BODIES[path]}) as response:
        content = await response.read()
    assert response.status == 200, content
    assert response.headers["x-semroute-pool"] == pool
    assert json.loads(content)["model"] == f"{pool}-model"
    given, made = usage(content, stream=False)
    assert given >= 7
    assert 0 < made <= TOKENS


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_says_what_the_whole_answer_says(client: aiohttp.ClientSession, path: str) -> None:
    body = {"model": "auto-weak", "temperature": 0, **BODIES[path]}
    async with client.post(path, json=body) as response:
        whole = await response.read()
    streamed = {**body, "stream": True, **(USAGE if "completions" in path else {})}
    async with client.post(path, json=streamed) as response:
        content = await response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-semroute-pool"] == "small"
    assert usage(content, stream=True) == usage(whole, stream=False)
    assert LAST[path] in content.decode().strip().splitlines()[-1]


async def test_a_stream_is_what_the_server_says_itself(client: aiohttp.ClientSession, pools: Pools) -> None:
    """Its text, that is: how many tokens vLLM puts into an event depends on how busy it is."""
    body = {**chat(TEXT, "small-model"), "max_tokens": 40, "temperature": 0, "stream": True, **USAGE}
    headers = {"x-request-id": "the-same"}
    async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
        through = _events(await response.read())
    async with (
        aiohttp.ClientSession(pools.small.url) as direct,
        direct.post("/v1/chat/completions", json=body, headers=headers) as response,
    ):
        expected = _events(await response.read())
    assert {event["id"] for event in through} == {"chatcmpl-the-same"}
    assert _text(through) == _text(expected) != ""
    assert through[-1]["usage"] == expected[-1]["usage"]


async def test_tokens_reach_the_client_while_others_are_still_being_made(
    client: aiohttp.ClientSession,
) -> None:
    body = {**chat(TEXT, "auto-weak"), "max_tokens": 600, "ignore_eos": True, "stream": True}
    started = time.monotonic()
    arrivals: list[float] = []
    async with client.post("/v1/chat/completions", json=body) as response:
        async for _ in response.content.iter_any():
            arrivals.append(time.monotonic() - started)
    assert len(arrivals) >= 10
    assert arrivals[0] < 0.8 * arrivals[-1], "the answer was held back"


async def test_a_tier_is_decided_by_the_encoder(client: aiohttp.ClientSession) -> None:
    body = {**chat("Prove that there are infinitely many primes.", "auto"), "max_tokens": 2}
    async with client.post("/v1/chat/completions", json=body) as response:
        answer = await response.json()
    assert answer["model"] == response.headers["x-semroute-model"]
    assert 0 <= float(response.headers["x-semroute-difficulty"]) <= 1


async def test_what_is_not_routed_passes_through(client: aiohttp.ClientSession) -> None:
    body = {"model": "large-model", "messages": chat(TEXT)["messages"]}
    async with client.post("/v1/messages/count_tokens", json=body) as response:
        assert (await response.json())["input_tokens"] > 7


@pytest.mark.parametrize("path", BODIES)
async def test_the_servers_own_errors_reach_the_client(
    client: aiohttp.ClientSession, gateway: Gateway, path: str
) -> None:
    async with client.post(path, json={"model": "nope", **BODIES[path]}) as response:
        error = (await response.json())["error"]
    assert response.status == 404
    assert "`nope` does not exist" in error["message"]


async def test_a_request_that_vllm_refuses_is_refused_in_its_words(client: aiohttp.ClientSession) -> None:
    body = {**chat(TEXT, "small-model"), "max_tokens": 2, "top_logprobs": -5, "logprobs": True}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"]


def _events(content: bytes) -> list[dict[str, Any]]:
    lines = content.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def _text(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])

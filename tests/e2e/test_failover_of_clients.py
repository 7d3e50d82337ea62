"""Failover of what real clients send: other names and paths, limits, stored responses, guarded pools."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from gateway import Gateway, Pools, chat, dump
from semroute_demo.pool import Fault, Received
from semroute_demo.sidecar import Sidecar

from semroute_extproc.state.sessions import tag

JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
SETTINGS = {
    "CONTROLLERS__FAILOVER__FAILURES": "1000",
    "CONTROLLERS__SESSION": "{}",
    "POOLS__SMALL__CONTEXT": "32768",
    "POOLS__SMALL__CLAMP": "true",
    "POOLS__LARGE__POLICY": "guard",
    "POLICIES__GUARD": json.dumps({"otherwise": {"pool": "large"}}),
}


@pytest.fixture(scope="module")
def standard(own_gateway: Gateway) -> Gateway:
    return own_gateway


@pytest.fixture(autouse=True)
def failing(gateway: Gateway) -> Gateway:
    """Its pool `small` fails once."""
    gateway.small.faults.append(Fault(status=500))
    return gateway


async def send(
    client: aiohttp.ClientSession, path: str, body: Any, method: str = "POST"
) -> aiohttp.ClientResponse:
    data, headers = (body, FORM) if isinstance(body, bytes) else (dump(body), JSON)
    async with client.request(method, path, data=io.BytesIO(data), headers=headers) as response:
        await response.read()
        return response


def bodies(gateway: Gateway) -> tuple[Any, Any]:
    """What the first pool and the second one got."""
    [first], [second] = gateway.small.received, gateway.large.received
    return json.loads(first.body), json.loads(second.body)


@pytest.mark.parametrize(
    ("path", "model", "pools_path"),
    [
        ("/v1/chat/completions", "claude-haiku-4-5", "/v1/chat/completions"),
        ("/v1/chat/completions", "Auto-Weak", "/v1/chat/completions"),
        ("/api/v1/chat/completions/", "auto-weak", "/v1/chat/completions"),
        ("/anthropic/v1/messages?beta=true", "Claude-Haiku-4-5", "/v1/messages?beta=true"),
        (
            "/openai/deployments/auto-weak/chat/completions?api-version=1",
            "",
            "/v1/chat/completions?api-version=1",
        ),
        ("/openai/deployments/claude-x/chat/completions", "of the body", "/v1/chat/completions"),
        ("/v1/chat/completions?model=auto-weak", "", "/v1/chat/completions?model=auto-weak"),
    ],
)
async def test_a_name_and_a_path_keep_their_meaning(
    client: aiohttp.ClientSession, failing: Gateway, path: str, model: str, pools_path: str
) -> None:
    body = chat(model=model, max_tokens=9)
    if not model:
        del body["model"]
    response = await send(client, path, body)
    assert (response.status, response.headers["x-sim-pool"]) == (200, "large")
    first, second = bodies(failing)
    assert (first, second) == ({**body, "model": "small-model"}, {**body, "model": "large-model"})
    assert {each.path for pool in failing.pools for each in pool.received} == {pools_path}


async def test_a_conversation_is_the_same_one_at_the_next_pool(
    client: aiohttp.ClientSession, failing: Gateway
) -> None:
    first = await send(client, "/v1/chat/completions", chat("Who are you?"))
    later = chat("Who are you?")
    later["messages"] += [{"role": "assistant", "content": "I."}, {"role": "user", "content": "Why?"}]
    second = await send(client, "/v1/chat/completions", later)
    assert [each.headers["x-semroute-pool"] for each in (first, second)] == ["large", "large"]
    assert "conversation stays in large" in second.headers["x-semroute-reason"]
    sent = [*failing.small.received, *failing.large.received]
    assert len({each.headers["x-semroute-affinity"] for each in sent}) == 1
    assert len(sent) == 3


async def test_the_next_pool_gets_the_clients_own_limit_and_not_the_clamped_one(
    client: aiohttp.ClientSession, failing: Gateway
) -> None:
    await send(client, "/v1/chat/completions", chat(max_tokens=100_000))
    first, second = bodies(failing)
    assert first["max_tokens"] < 32_768
    assert second["max_tokens"] == 100_000


async def test_a_prompt_that_is_too_long_for_the_largest_pool_gets_that_pools_error(
    client: aiohttp.ClientSession, failing: Gateway
) -> None:
    error = "This model's maximum context length is 10000000 tokens."
    failing.large.faults.extend([Fault(status=400, message=error)] * 2)
    response = await send(client, "/v1/chat/completions", chat(model="auto-strong"))
    assert (response.status, response.headers["x-semroute-pool"]) == (400, "large")
    assert len(failing.large.received) == 2
    assert not failing.small.received


@pytest.mark.parametrize("prefix", ["", "/openai"])
async def test_a_response_gets_an_id_of_the_pool_that_answers(
    client: aiohttp.ClientSession, failing: Gateway, prefix: str
) -> None:
    await send(client, f"{prefix}/v1/responses", {"model": "auto-weak", "input": "Hello"})
    ids = [body["request_id"] for body in bodies(failing)]
    assert [each[5:13] for each in ids] == [tag("small"), tag("large")]
    for issued, pool in zip(ids, ("small", "large"), strict=True):
        for method, rest in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items?limit=2"),
        ):
            path = f"{prefix}/v1/responses/{issued}{rest}"
            response = await send(client, path, {}, method)
            assert response.headers["x-semroute-pool"] == pool
            line = failing.logged(response.headers["x-request-id"])
            assert line["upstream"].endswith(f":{getattr(failing, pool).port}")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/audio/transcriptions",
            b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nauto-weak\r\n--x--',
        ),
        ("/v1/batches", {"model": "gpt-4o-mini"}),
        ("/v1/chat/completions/batch", {"model": "auto-weak"}),
        ("/invocations", {"model": "auto-weak"}),
        ("/openai/v1/responses", {"model": "auto-weak", "input": "Hello", "store": True}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_what_may_be_there_twice_is_not_repeated(
    client: aiohttp.ClientSession, failing: Gateway, path: str, body: Any
) -> None:
    failing.large.faults.append(Fault(status=500))  # A routed name without text is for the default pool.
    assert (await send(client, path, body)).status == 500
    received: list[Received] = [*failing.small.received, *failing.large.received]
    assert len(received) == 1


async def test_a_guarded_pool_is_not_replaced_by_another_model(
    client: aiohttp.ClientSession, failing: Gateway
) -> None:
    failing.large.faults.append(Fault(status=500))
    response = await send(client, "/v1/chat/completions", chat(model="large-model"))
    assert (response.status, response.headers["x-semroute-reason"]) == (500, "always large")
    assert not failing.small.received


async def test_a_guarded_pool_is_replaced_by_another_one_with_its_model(
    make_gateway: Callable[..., Gateway], make_sidecar: Callable[..., Sidecar], pools: Pools
) -> None:
    """`twin` is a second cluster in front of the same server."""
    twin = {"POOLS__TWIN__CLUSTER": "vllm-twin", "POOLS__TWIN__MODEL": "large-model"}
    gateway = make_gateway(
        [make_sidecar(**SETTINGS, **twin)], addresses={"vllm-twin": pools.addresses["vllm-large"]}
    )
    gateway.large.faults.append(Fault(status=500))
    async with aiohttp.ClientSession(gateway.url) as client:
        response = await send(client, "/v1/chat/completions", chat(model="large-model"))
    assert (response.status, response.headers["x-semroute-pool"]) == (200, "twin")
    assert response.headers["x-semroute-reason"] == "large failed (500): always large"


@pytest.mark.parametrize(
    ("mode", "answers"),
    {
        "BUFFERED": "large",
        "BUFFERED_PARTIAL": "large",
        "STREAMED": "large",
        "FULL_DUPLEX_STREAMED": "small",
    }.items(),
)
async def test_a_body_is_repeated_in_every_mode_in_which_envoy_keeps_it(
    make_gateway: Callable[..., Gateway], make_sidecar: Callable[..., Sidecar], mode: str, answers: str
) -> None:
    trailers = {"request_trailer_mode": "SEND"} if mode == "FULL_DUPLEX_STREAMED" else {}
    changes = {"processing_mode": {"request_body_mode": mode, **trailers}}
    gateway = make_gateway([make_sidecar(**SETTINGS)], **changes)
    gateway.small.faults.append(Fault(status=500))
    async with aiohttp.ClientSession(gateway.url) as client:
        response = await send(client, "/openai/deployments/claude-x/chat/completions", chat(model="x"))
    assert response.headers["x-sim-pool"] == answers
    assert {each.path for each in gateway.small.received} == {"/v1/chat/completions"}

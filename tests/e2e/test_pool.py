"""The simulated pool answers as vLLM does, in all that routing and its tests rely on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from semroute_demo.client import usage
from semroute_demo.pool import PATHS, Fault, Pool, Speed

from semroute_extproc.request.view import Api

SPEED = Speed(first_token_seconds=0.001, token_seconds=0.0001, slots=2, queue_max=2)
MESSAGES = [{"role": "user", "content": "How are you today?"}]
BODIES = {
    "/v1/chat/completions": {"messages": MESSAGES, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "How are you today?", "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": "How are you today?"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1_000},
}


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    async with Pool("test", ("first", "alias"), SPEED) as running:
        yield running


@pytest.fixture
async def client(pool: Pool) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{pool.port}") as session:
        yield session


def test_every_api_is_served() -> None:
    assert set(PATHS.values()) == set(Api)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_says_what_the_whole_answer_says(client: aiohttp.ClientSession, path: str) -> None:
    body = {"model": "first", **BODIES[path]}
    async with client.post(path, json=body) as response:
        whole = await response.read()
    async with client.post(path, json={**body, "stream": True}) as response:
        stream = await response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
    assert usage(whole, stream=False) == usage(stream, stream=True)
    given, made = usage(whole, stream=False)
    assert given > 0
    assert 40 <= made < 200
    assert stream.endswith(b"data: [DONE]\n\n") == ("completions" in path)


@pytest.mark.parametrize("path", BODIES)
async def test_the_clients_limit_cuts_the_answer(client: aiohttp.ClientSession, path: str) -> None:
    name = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    async with client.post(path, json={**BODIES[path], name: 5}) as response:
        content = await response.read()
    assert usage(content, stream=False)[1] == 5
    assert any(word in content for word in (b'"length"', b'"max_tokens"', b'"max_output_tokens"'))


async def test_a_longer_prompt_counts_more_tokens_and_an_image_many(client: aiohttp.ClientSession) -> None:
    async def given(content: object) -> int:
        body = {"messages": [{"role": "user", "content": content}]}
        async with client.post("/v1/chat/completions", json=body) as response:
            return usage(await response.read(), stream=False)[0]

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}}
    text = await given("word " * 100)
    assert text > await given("word")
    assert 500 < await given([{"type": "text", "text": "word"}, image]) < 700


async def test_an_alias_is_accepted_and_answers_carry_the_first_name(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/chat/completions", json={"model": "alias", "messages": MESSAGES}) as response:
        assert (await response.json())["model"] == "first"


@pytest.mark.parametrize("path", BODIES)
async def test_an_unknown_model_is_a_404_with_vllms_error(client: aiohttp.ClientSession, path: str) -> None:
    async with client.post(path, json={"model": "nope", **BODIES[path]}) as response:
        body = await response.json()
    assert response.status == 404
    assert body["error"]["type"] == "NotFoundError"
    assert "`nope` does not exist" in body["error"]["message"]
    assert (body.get("type") == "error") == (path == "/v1/messages")


async def test_models_are_listed(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/models") as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["first", "alias"]


async def test_compressed_bodies_are_not_unpacked(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/chat/completions", json={"messages": MESSAGES}, compress="gzip") as response:
        assert response.status == 400


async def test_embeddings_count_prompt_tokens_only(client: aiohttp.ClientSession) -> None:
    async with client.post("/v1/embeddings", json={"model": "first", "input": "a text"}) as response:
        body = await response.json()
    assert body["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    assert len(body["data"][0]["embedding"]) == 32


async def test_the_gauges_follow_slots_and_queue_and_the_full_queue_is_a_503(
    pool: Pool, client: aiohttp.ClientSession
) -> None:
    pool.speed = Speed(first_token_seconds=0.3, token_seconds=0, slots=2, queue_max=2)

    async def post() -> int:
        async with client.post("/v1/chat/completions", json={"messages": MESSAGES}) as response:
            return response.status

    async def gauges() -> dict[str, float]:
        async with client.get("/metrics") as response:
            families = list(text_string_to_metric_families(await response.text()))
        samples = [sample for family in families for sample in family.samples]
        assert all(
            sample.labels["model_name"] == "first" for sample in samples if sample.name.startswith("vllm:num")
        )
        return {
            sample.name: sample.value for sample in samples if sample.name.startswith(("vllm:num", "vllm:kv"))
        }

    tasks = [asyncio.create_task(post()) for _ in range(4)]
    await asyncio.sleep(0.1)
    busy = await gauges()
    assert (busy["vllm:num_requests_running"], busy["vllm:num_requests_waiting"]) == (2, 2)
    assert busy["vllm:kv_cache_usage_perc"] > 0
    assert await post() == 503
    assert await asyncio.gather(*tasks) == [200] * 4
    idle = await gauges()
    assert set(idle.values()) == {0}


async def test_a_client_that_leaves_frees_its_slot(pool: Pool, client: aiohttp.ClientSession) -> None:
    pool.speed = Speed(first_token_seconds=30)
    with pytest.raises(TimeoutError):
        await client.post(
            "/v1/chat/completions", json={"messages": MESSAGES}, timeout=aiohttp.ClientTimeout(total=0.2)
        )
    await asyncio.sleep(0.2)
    async with client.get("/metrics") as response:
        assert 'vllm:num_requests_running{engine="0",model_name="first"} 0.0' in await response.text()


async def test_faults_happen_once_and_in_order(pool: Pool, client: aiohttp.ClientSession) -> None:
    pool.faults.extend([Fault(status=500), Fault(drop_after=1)])
    async with client.post("/v1/chat/completions", json={"messages": MESSAGES}) as response:
        assert response.status == 500
    with pytest.raises(aiohttp.ClientPayloadError):
        async with client.post(
            "/v1/chat/completions", json={"messages": MESSAGES, "stream": True}
        ) as response:
            await response.read()
    async with client.post("/v1/chat/completions", json={"messages": MESSAGES}) as response:
        assert response.status == 200
    assert [json.loads(received.body)["messages"] for received in pool.received] == [MESSAGES] * 3

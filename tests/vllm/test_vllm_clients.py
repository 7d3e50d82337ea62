"""The paths of a real vLLM as clients spell them, each kind of name, encodings, limits, stored responses."""

from __future__ import annotations

import gzip
import json
import re
import urllib.error
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import brotli
import pytest
import yarl
import zstandard
from gateway import Gateway, chat
from semroute_demo.sidecar import Sidecar
from servers import CONTEXTS, Pools
from tiny_model import LABELS

from semroute_extproc.state.sessions import stored_in, tag

TEXT = "What is the capital of Australia?"
HARD = "Design a lock-free queue for many producers and prove that it is linearizable."
MESSAGES = chat(TEXT)["messages"]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 2},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 2},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/chat/completions/batch": {"messages": [MESSAGES, MESSAGES], "max_tokens": 2},
    "/tokenize": {"prompt": TEXT},
    "/detokenize": {"tokens": [50, 60, 70]},
    "/generative_scoring": {"query": TEXT, "items": ["A", "B"], "label_token_ids": [50, 60]},
    "/invocations": {"messages": MESSAGES, "max_tokens": 2},
}
NAMES = {
    "small-model": "small",
    "Small-Model": "small",
    "gpt-4o-mini": "small",
    "auto-weak": "small",
    "claude-haiku-4-5": "small",
    "org/auto-weak": "small",
    "large-model": "large",
    "auto-strong": "large",
}
"""What a client may call a model, and the pool that it means."""

SPELLINGS: dict[str, Callable[[str], str]] = {
    "behind a prefix": lambda path: "/openai" + path,
    "behind a prefix, without v1": lambda path: "/api" + path.removeprefix("/v1"),
    "with a final slash": lambda path: path + "/",
    "with a query": lambda path: path + "?beta=true",
}
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
    "br": brotli.compress,
}


@pytest.fixture(scope="module")
def standard(gateway_of_clients: Gateway) -> Gateway:
    return gateway_of_clients


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("path", BODIES)
async def test_every_path_is_answered_by_the_pool_that_a_name_means(
    client: aiohttp.ClientSession, path: str, model: str
) -> None:
    await _answered_by(NAMES[model], client, path, {"model": model, **BODIES[path]})


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("path", BODIES)
async def test_every_path_is_found_as_clients_spell_it(
    client: aiohttp.ClientSession, path: str, spelling: str
) -> None:
    body = {"model": "claude-haiku-4-5", **BODIES[path]}
    await _answered_by("small", client, SPELLINGS[spelling](path), body)


async def test_azures_path_names_the_model(client: aiohttp.ClientSession) -> None:
    path = "/openai/deployments/gpt-4o-mini/chat/completions?api-version=2024-10-21"
    await _answered_by("small", client, path, BODIES["/v1/chat/completions"])


@pytest.mark.parametrize(("form", "headers"), [("openai", {}), ("anthropic", {"anthropic-version": "1"})])
async def test_every_listed_model_is_one_that_vllm_answers_under(
    client: aiohttp.ClientSession, form: str, headers: dict[str, str]
) -> None:
    async with client.get(f"/{form}/v1/models", headers=headers) as response:
        listed = [model["id"] for model in (await response.json())["data"]]
    assert {"small-model", "large-model", "auto-weak", "auto-strong", "org/auto-weak"} <= set(listed)
    for name in set(listed) - {"auto"}:
        body = {"model": name, **BODIES["/v1/completions"]}
        await _answered_by(NAMES[name], client, "/v1/completions", body)


@pytest.mark.parametrize(("model", "pool"), [("small-model", "small"), ("large-model", "large")])
async def test_a_models_card_has_the_context_that_its_server_reports(
    client: aiohttp.ClientSession, pools: Pools, model: str, pool: str
) -> None:
    async with client.get(f"/v1/models/{model}") as response:
        card = await response.json()
    [server] = [each for each in pools if each.name == pool]
    assert card["max_model_len"] == server.ask("/tokenize", {"prompt": TEXT})["max_model_len"]


@pytest.mark.parametrize("name", ["org/auto-weak", "org%2Fauto-weak"])
async def test_a_card_is_found_with_its_slash_escaped_or_not(
    client: aiohttp.ClientSession, gateway: Gateway, name: str
) -> None:
    async with client.get(yarl.URL(f"{gateway.url}/v1/models/{name}", encoded=True)) as response:
        assert (await response.json())["id"] == "org/auto-weak"


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_body_reaches_vllm_readable(
    client: aiohttp.ClientSession, pools: Pools, encoding: str
) -> None:
    """vLLM reads no `content-encoding`: without the gateway the same body is an error."""
    data = ENCODINGS[encoding](json.dumps({"model": "auto-weak", **BODIES["/v1/chat/completions"]}).encode())
    headers = {"content-type": "application/json", "content-encoding": encoding}
    async with client.post("/v1/chat/completions", data=data, headers=headers) as response:
        answer = await response.json()
    assert response.status == 200, answer
    expected = pools.small.ask("/tokenize", {"messages": MESSAGES})["count"]
    assert answer["usage"]["prompt_tokens"] == expected
    async with (
        aiohttp.ClientSession(pools.small.url) as direct,
        direct.post("/v1/chat/completions", data=data, headers=headers) as response,
    ):
        assert response.status == 400


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/completions", "max_tokens"),
        ("/v1/messages", "max_tokens"),
    ],
)
async def test_a_limit_beyond_the_context_is_lowered_so_that_vllm_takes_it(
    client: aiohttp.ClientSession, pools: Pools, path: str, limit: str
) -> None:
    stop = {"stop_sequences" if path == "/v1/messages" else "stop": list(LABELS[:4])}
    body = {**BODIES[path], **stop, limit: 100_000}
    if limit == "max_completion_tokens":
        del body["max_tokens"]
    await _answered_by("small", client, path, {"model": "auto-weak", **body})
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        pools.small.ask(path, {"model": "small-model", **body})
    assert "cannot be greater than max_model_len=4096" in refused.value.read().decode()


async def test_a_follow_up_of_a_stored_response_goes_to_the_pool_that_stored_it(
    client: aiohttp.ClientSession, pools: Pools
) -> None:
    first = await _answered_by("small", client, "/v1/responses", {"model": "auto", **_responses("Hi!")})
    assert stored_in(first["id"])[0] == tag("small")
    follow_up = {"model": "auto", **_responses(HARD), "previous_response_id": first["id"]}
    second = await _answered_by("small", client, "/v1/responses", follow_up)
    assert second["previous_response_id"] == first["id"]
    alone = pools.small.ask("/tokenize", {"messages": chat(HARD)["messages"]})["count"]
    assert second["usage"]["input_tokens"] > alone, "vLLM has put the stored turns before the new one"
    await _answered_by("large", client, "/v1/responses", {"model": "auto", **_responses(HARD)})


@pytest.mark.parametrize("prefix", ["", "/openai"])
@pytest.mark.parametrize("pool", ["small", "large"])
async def test_a_stored_response_is_read_from_the_pool_that_stored_it(
    client: aiohttp.ClientSession, pool: str, prefix: str
) -> None:
    model = {"small": "auto-weak", "large": "auto-strong"}[pool]
    body = {"model": model, **_responses("Hi!"), "stream": True}
    async with client.post("/v1/responses", json=body) as response:
        lines = (await response.text()).splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    [made] = {event["response"]["id"] for event in events if "response" in event}
    async with client.get(f"{prefix}/v1/responses/{made}") as response:
        stored = await response.json()
    assert (response.status, response.headers["x-semroute-pool"]) == (200, pool)
    assert (stored["id"], stored["model"]) == (made, f"{pool}-model")


async def test_a_conversation_that_repeats_vllms_answer_is_found_again(
    client: aiohttp.ClientSession, sidecar_of_clients: Sidecar
) -> None:
    def found() -> list[str]:
        page = sidecar_of_clients.read_admin("/metrics")[1]
        return re.findall(r'^semroute_sessions_total\{result="(?:same|kept)"\} (\S+)$', page, re.M)

    body = {**chat(HARD, "auto"), "max_tokens": 8}
    first = await _answered_by("large", client, "/v1/chat/completions", body)
    body["messages"] += [first["choices"][0]["message"], {"role": "user", "content": "Thanks, good night!"}]
    before = found()
    await _answered_by("large", client, "/v1/chat/completions", body)
    assert found() != before


def _responses(text: str) -> dict[str, object]:
    return {"input": text, "max_output_tokens": 8}


async def _answered_by(
    pool: str, client: aiohttp.ClientSession, path: str, body: dict[str, Any]
) -> dict[str, Any]:
    """The answer of `pool`; a server refuses every name but its own, so 200 says that the name is right."""
    async with client.post(path, json=body) as response:
        answer: dict[str, Any] = await response.json()
    assert response.status == 200, answer
    assert response.headers["x-semroute-pool"] == pool
    assert answer.get("model", f"{pool}-model") == f"{pool}-model"
    assert answer.get("max_model_len", CONTEXTS[pool]) == CONTEXTS[pool]
    return answer

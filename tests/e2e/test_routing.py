"""What clients see of routing, through the shipped Envoy and the shipped modes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import uuid

import aiohttp
import pytest
from gateway import Gateway, chat, dump

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(("model", "pool"), [("auto-weak", "small"), ("auto-strong", "large")])
async def test_a_virtual_model_is_routed_and_its_name_replaced(
    client: aiohttp.ClientSession, gateway: Gateway, model: str, pool: str
) -> None:
    body = dump(chat(model=model))
    async with client.post("/v1/chat/completions", data=body, headers=JSON) as response:
        answer = await response.json()
    assert response.status == 200
    assert response.headers["x-semroute-pool"] == response.headers["x-sim-pool"] == pool
    assert response.headers["x-semroute-model"] == answer["model"] == f"{pool}-model"
    assert response.headers["x-semroute-reason"]
    assert 0 <= float(response.headers["x-semroute-difficulty"]) <= 1
    received = (gateway.small if pool == "small" else gateway.large).received[-1]
    assert received.body == body.replace(model.encode(), f"{pool}-model".encode())
    assert received.headers["content-length"] == str(len(received.body))


async def test_only_the_changed_members_of_a_body_differ(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    """Odd spacing, numbers and escapes inside of values survive: a prefix cache sees the same prompt."""
    messages = b'[ {"role":"user", "content":"caf\\u00e9 \xf0\x9f\x98\x80"}]'
    body = (
        b'{ "temperature": 0.70000000000000001, "big": 123456789012345678901234567890,\n'
        b'  "model" : "auto-weak", "messages": %s }' % messages
    )
    async with client.post("/v1/chat/completions", data=body, headers=JSON) as response:
        assert response.status == 200
    assert gateway.small.received[-1].body == (
        b'{"temperature":0.70000000000000001,"big":123456789012345678901234567890,'
        b'"model":"small-model","messages":%s}' % messages
    )


async def test_a_named_model_goes_to_its_pool_with_its_body_untouched(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    body = dump(chat(model="small-model"))
    async with client.post("/v1/chat/completions", data=body, headers=JSON) as response:
        assert response.headers["x-sim-pool"] == "small"
        assert response.headers["x-semroute-outcome"] == "named"
    assert gateway.small.received[-1].sha256 == hashlib.sha256(body).hexdigest()


async def test_an_unknown_model_gets_the_default_pools_own_404(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    async with client.post("/v1/chat/completions", json=chat(model="nope")) as response:
        answer = await response.json()
    assert response.status == 404
    assert response.headers["x-sim-pool"] == "large"
    assert answer["error"]["type"] == "NotFoundError"


async def test_the_list_of_models_has_virtual_and_real_ones(client: aiohttp.ClientSession) -> None:
    async with client.get("/v1/models") as response:
        models = {model["id"] for model in (await response.json())["data"]}
    assert models == {"auto", "auto-weak", "auto-strong", "org/fixed-embedder", "small-model", "large-model"}
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "auto-weak", "prompt": "Once upon a time"}),
        ("/v1/responses", {"model": "auto-weak", "input": "Say hello."}),
        ("/v1/messages", {"model": "auto-weak", "max_tokens": 9, "messages": chat()["messages"]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_api_is_routed_streamed_or_not(
    client: aiohttp.ClientSession, path: str, body: dict[str, object], stream: bool
) -> None:
    async with client.post(path, json={**body, "stream": stream}) as response:
        content = await response.read()
    assert response.status == 200
    assert response.headers["x-sim-pool"] == response.headers["x-semroute-pool"] == "small"
    assert b"small-model" in content
    assert (b"data: {" in content) == stream


async def test_a_pool_that_does_not_serve_the_api_is_passed_over(client: aiohttp.ClientSession) -> None:
    body = {"model": "auto-weak", "input": "a text"}
    async with client.post("/classify", json=body) as response:
        assert response.status == 200
        assert response.headers["x-sim-pool"] == "large"


async def test_an_image_goes_to_the_pool_that_reads_images(client: aiohttp.ClientSession) -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:,x"}},
    ]
    body = {"model": "auto-weak", "messages": [{"role": "user", "content": parts}]}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.headers["x-sim-pool"] == "large"


async def test_a_rule_on_a_header_decides_and_writes_the_reasoning_switch(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    async with client.post(
        "/v1/chat/completions", json=chat(model="auto"), headers={"x-tier": "free"}
    ) as response:
        assert response.headers["x-semroute-pool"] == "small"
        assert "tier" in response.headers["x-semroute-reason"]
        assert "x-semroute-difficulty" not in response.headers, "the encoder was asked without need"
    received = json.loads(gateway.small.received[-1].body)
    assert received["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(("quality", "pool"), [("0", "small"), ("1", "large")])
async def test_the_client_moves_the_trade_off(client: aiohttp.ClientSession, quality: str, pool: str) -> None:
    headers = {"x-semroute-quality": quality}
    async with client.post("/v1/chat/completions", json=chat(model="auto"), headers=headers) as response:
        assert response.headers["x-semroute-pool"] == pool


async def test_a_request_that_no_pool_can_serve_is_refused_in_openais_shape(
    client: aiohttp.ClientSession,
) -> None:
    async with client.post("/v1/chat/completions", json=chat(max_tokens=20_000_000)) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["code"] == "no_pool_for_request"
    assert "context" in error["message"]


async def test_gzip_is_read_and_the_pool_gets_plain_json(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    body = dump(chat())
    headers = {**JSON, "content-encoding": "gzip"}
    async with client.post("/v1/chat/completions", data=gzip.compress(body), headers=headers) as response:
        assert response.status == 200
    received = gateway.small.received[-1]
    assert received.body == body.replace(b"auto-weak", b"small-model")
    assert "content-encoding" not in received.headers
    assert received.headers["content-length"] == str(len(received.body))


async def test_an_unreadable_encoding_is_refused(client: aiohttp.ClientSession) -> None:
    headers = {**JSON, "content-encoding": "compress"}
    async with client.post("/v1/chat/completions", data=b"\x0b\x02\x80", headers=headers) as response:
        error = (await response.json())["error"]
    assert response.status == 415
    assert error["code"] == "unsupported_content_encoding"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/chat/completions", b"{not json", JSON),
        ("/v1/chat/completions", b'["a list"]', JSON),
        ("/v1/chat/completions", b"\xff\xfe\x00", JSON),
        ("/v1/chat/completions", b"", JSON),
        ("/v1/chat/completions", b'{"model": "auto"}', {"content-type": "text/plain"}),
        (
            "/v1/audio/transcriptions",
            b"--x\r\n\r\n--x--",
            {"content-type": "multipart/form-data; boundary=x"},
        ),
        ("/v1/unheard-of", b'{"model": "auto"}', JSON),
    ],
    ids=["not json", "a list", "not utf-8", "empty", "other type", "multipart", "other path"],
)
async def test_what_cannot_be_read_goes_to_the_default_pool_untouched(
    client: aiohttp.ClientSession, gateway: Gateway, path: str, body: bytes, headers: dict[str, str]
) -> None:
    async with client.post(path, data=body, headers=headers) as response:
        await response.read()
        assert response.headers["x-semroute-outcome"] == "passthrough"
        assert response.headers["x-semroute-pool"] == "large"
    if path == "/v1/chat/completions":
        assert gateway.large.received[-1].body == body
        assert gateway.large.received[-1].headers["content-type"] == headers["content-type"]


async def test_a_body_of_wrong_types_goes_to_the_default_pool_with_its_model(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    body = {"model": "auto", "messages": 7}
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.headers["x-semroute-outcome"] == "fallback"
    assert json.loads(gateway.large.received[-1].body) == {**body, "model": "large-model"}


async def test_a_get_passes_through(client: aiohttp.ClientSession) -> None:
    async with client.get("/health") as response:
        assert response.status == 200
        assert response.headers["x-semroute-outcome"] == "passthrough"


@pytest.mark.parametrize("length", [1, 4_096, 5_000_000])
@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
async def test_bodies_of_any_size_below_the_cap_are_routed(
    client: aiohttp.ClientSession, gateway: Gateway, length: int, declared: bool
) -> None:
    body = dump(chat("word " * (length // 5 + 1)))

    async def pieces():
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    data = io.BytesIO(body) if declared else pieces()
    async with client.post("/v1/chat/completions", data=data, headers=JSON) as response:
        assert response.status == 200
        assert response.headers["x-sim-pool"] == "small"
    expected = body.replace(b"auto-weak", b"small-model")
    received = gateway.small.received[-1]
    assert (received.length, received.sha256) == (len(expected), hashlib.sha256(expected).hexdigest())


async def test_the_access_log_tells_the_decision(client: aiohttp.ClientSession, gateway: Gateway) -> None:
    name = uuid.uuid4().hex
    async with client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": name}) as response:
        assert response.headers["x-request-id"] == name
    line = gateway.logged(name)
    assert line["cluster"] == line["semroute"]["cluster"] == "vllm-small"
    assert line["route"] == "picked"
    assert line["semroute"]["pool"] == "small"
    assert line["semroute"]["decision_ms"] > 0
    assert line["ext_proc"].startswith("rh:")


async def test_credentials_reach_the_pool_and_the_routing_header_does_not(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    headers = {"authorization": "Bearer sesame", "x-api-key": "k"}
    async with client.post("/v1/chat/completions", json=chat(), headers=headers) as response:
        assert response.status == 200
    received = gateway.small.received[-1].headers
    assert received["authorization"] == "Bearer sesame"
    assert received["x-api-key"] == "k"
    assert not [name for name in received if name.startswith("x-semroute-")]


async def test_many_requests_at_once_do_not_mix(client: aiohttp.ClientSession, gateway: Gateway) -> None:
    async def one(number: int) -> None:
        pool = "small" if number % 2 else "large"
        body = dump(chat(f"Question {number}?", model="auto-weak" if number % 2 else "auto-strong"))
        async with client.post("/v1/chat/completions", data=body, headers=JSON) as response:
            assert response.headers["x-sim-pool"] == response.headers["x-semroute-pool"] == pool
            old = b"auto-weak" if number % 2 else b"auto-strong"
            expected = body.replace(old, f"{pool}-model".encode())
            assert response.headers["x-sim-sha256"] == hashlib.sha256(expected).hexdigest()

    await asyncio.gather(*(one(number) for number in range(200)))

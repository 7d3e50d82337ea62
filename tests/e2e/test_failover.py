"""A pool that fails before its first byte: the policy's next pool answers, with its own model's name."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import pytest
from gateway import (
    Gateway,
    Pools,
    RawResponse,
    chat,
    chunked,
    connect,
    dump,
    raw_request,
    read_response,
    wait_for,
)
from msgspec import Raw
from semroute_demo.envoy import clusters, find_envoy
from semroute_demo.pool import Fault
from semroute_demo.process import free_port
from semroute_demo.sidecar import Sidecar

from semroute_extproc.request.handover import FAILURE_HEADER, HANDOVER_HEADER, Handover

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]

ENVOY = re.search(r"/(\d+)\.(\d+)\.", subprocess.check_output([find_envoy(), "--version"], text=True))
assert ENVOY is not None
OLD_ENVOY = (int(ENVOY[1]), int(ENVOY[2])) < (1, 40)
TOO_LONG = "This model's maximum context length is 32768 tokens. However, you requested 40000 tokens."
FAILURES = {
    "500": [Fault(status=500)],
    "502": [Fault(status=502)],
    "504": [Fault(status=504)],
    "429": [Fault(status=429)],
    "503": [Fault(status=503)] * 2,
    "context": [Fault(status=400, message=TOO_LONG)],
    "unreachable": [Fault(silent=True)] * 2,
}
"""Kind of failure to what the pool does; a pool gets a second attempt after a 503 or a lost connection."""

DEAD = {"vllm-small": ("127.0.0.1", 1)}
"""Nothing listens on port 1."""


SETTINGS = {"CONTROLLERS__FAILOVER__FAILURES": "1000"}
"""Failures are handed over, and never exclude a pool."""


@pytest.fixture(scope="module")
def standard(own_gateway: Gateway) -> Gateway:
    return own_gateway


async def _post(
    client: aiohttp.ClientSession, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    data, headers = io.BytesIO(dump(body)), {"content-type": "application/json", **headers}
    async with client.post(path, data=data, headers=headers, allow_redirects=False) as response:
        return response, await response.read()


def _models(received: Sequence[Any]) -> list[str]:
    return [json.loads(each.body)["model"] for each in received]


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_next_pool_answers_under_its_own_models_name(
    client: aiohttp.ClientSession, gateway: Gateway, own_sidecar: Sidecar, failure: str
) -> None:
    gateway.small.faults.extend(FAILURES[failure])
    response, _ = await _post(client, chat())
    assert response.status == 200
    assert response.headers["x-sim-pool"] == response.headers["x-semroute-pool"] == "large"
    assert response.headers["x-semroute-model"] == "large-model"
    assert response.headers["x-semroute-reason"].startswith(f"small failed ({failure}): ")
    assert _models(gateway.small.received) == ["small-model"] * len(FAILURES[failure])
    assert _models(gateway.large.received) == ["large-model"]
    assert "x-semroute-failed" not in gateway.large.received[0].headers
    assert "x-semroute-failover" not in gateway.large.received[0].headers
    counted = f'semroute_failovers_total{{failure="{failure}",pool="small",to="large"}}'
    assert counted in own_sidecar.read_admin("/metrics")[1]


@pytest.mark.parametrize(
    "host",
    ["gateway", "gateway:10000", "my_gateway", "my_gateway:10000", "a:", "a,b", "a'b", "a:99999", "*", "%"],
)
def test_the_next_pool_answers_whatever_host_the_client_names(gateway: Gateway, host: str) -> None:
    """Envoy follows no redirect to most of these."""
    gateway.small.faults.append(Fault(status=500))
    body = dump(chat())
    head = ["POST /v1/chat/completions HTTP/1.1", f"host: {host}", "content-type: application/json"]
    with connect(gateway) as connection:
        connection.sendall(raw_request([*head, f"content-length: {len(body)}"]) + body)
        answer = read_response(connection)
    assert (answer.status, answer.headers["x-semroute-pool"]) == (200, "large")


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097.",
        "The decoder prompt (length 4097) is longer than the maximum model length of 4096.",
        "The engine prompt length 4097 exceeds the max_model_len 4096. Please reduce prompt.",
        "max_tokens=9000 cannot be greater than max_model_len=4096. Please request fewer output tokens.",
    ],
)
async def test_each_of_vllms_words_for_a_full_context_is_known(
    client: aiohttp.ClientSession, gateway: Gateway, words: str
) -> None:
    gateway.small.faults.append(Fault(status=400, message=words))
    response, _ = await _post(client, chat())
    assert response.headers["x-semroute-reason"].startswith("small failed (context): ")
    assert response.headers["x-sim-pool"] == "large"


async def test_another_error_of_a_request_is_its_answer(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=400))
    response, _ = await _post(client, chat())
    assert response.status == 400
    assert not gateway.large.received


async def test_a_pools_own_redirect_is_a_failure_and_is_not_followed(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=307))
    response, _ = await _post(client, chat())
    assert response.headers["x-semroute-reason"].startswith("small failed (other): ")
    assert response.headers["x-sim-pool"] == "large"


async def test_a_compressed_body_fails_over_unpacked(client: aiohttp.ClientSession, gateway: Gateway) -> None:
    gateway.small.faults.append(Fault(status=500))
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    data = gzip.compress(dump(chat()))
    async with client.post("/v1/chat/completions", data=data, headers=headers) as response:
        assert response.headers["x-sim-pool"] == "large"
    assert json.loads(gateway.large.received[0].body) == chat(model="large-model")


async def test_a_chunked_body_with_trailers_fails_over(gateway: Gateway) -> None:
    gateway.small.faults.append(Fault(status=500))
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    head += ["transfer-encoding: chunked", "trailer: x-sum"]

    def send() -> RawResponse:
        with connect(gateway) as connection:
            connection.sendall(raw_request(head) + chunked([dump(chat())], ["x-sum: 1"]))
            return read_response(connection)

    response = await asyncio.to_thread(send)
    assert (response.status, response.headers["x-sim-pool"]) == (200, "large")


async def test_one_busy_replica_is_no_failure_of_its_pool(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=503))
    response, _ = await _post(client, chat())
    assert response.headers["x-sim-pool"] == "small"
    assert len(gateway.small.received) == 2


async def test_when_all_pools_fail_the_last_ones_error_is_the_answer(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    gateway.large.faults.append(Fault(status=429))
    response, content = await _post(client, chat())
    assert response.status == 429
    assert response.headers["x-semroute-pool"] == "large"
    assert "location" not in response.headers
    assert b"This failure was requested" in content


async def test_a_stream_fails_over_before_its_first_event_and_never_after(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    response, content = await _post(client, chat(stream=True))
    assert response.headers["x-sim-pool"] == "large"
    assert content.endswith(b"data: [DONE]\n\n")
    gateway.small.faults.append(Fault(drop_after=2))
    with pytest.raises(aiohttp.ClientPayloadError):
        await _post(client, chat(stream=True))
    assert len(gateway.large.received) == 1


async def test_a_body_of_six_megabytes_fails_over_whole(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    padding = "x" * 6_000_000
    response, _ = await _post(client, chat(user=padding))
    assert response.headers["x-sim-pool"] == "large"
    [first], [second] = gateway.small.received, gateway.large.received
    assert first.length == second.length > len(padding)


async def test_the_next_pool_gets_the_clients_body_without_the_first_ones_switches(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    """A rule turns off reasoning at `small`, which is a Qwen3; it does not apply to `large`."""
    gateway.small.faults.append(Fault(status=500))
    body = chat(model="auto", chat_template_kwargs={"date": "2026"})
    response, _ = await _post(client, body, **{"x-tier": "free"})
    assert response.headers["x-sim-pool"] == "large"
    [first], [second] = gateway.small.received, gateway.large.received
    assert json.loads(first.body)["chat_template_kwargs"] == {"date": "2026", "enable_thinking": False}
    assert json.loads(second.body) == {**body, "model": "large-model"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(store=True)),
        ("/v1/responses", {"model": "auto-weak", "input": "Hello", "store": True}),
        ("/v1/responses", {"model": "auto-weak", "input": "Hello", "background": True}),
        ("/v1/responses", {"model": "auto-weak", "input": "Hello", "previous_response_id": "resp_1"}),
    ],
    ids=["stored chat", "stored response", "background", "continued response"],
)
async def test_what_a_server_keeps_is_not_repeated(
    client: aiohttp.ClientSession, gateway: Gateway, path: str, body: dict[str, Any]
) -> None:
    gateway.small.faults.append(Fault(status=500))
    response, _ = await _post(client, body, path)
    assert response.status == 500
    assert not gateway.large.received


async def test_a_named_model_never_goes_to_another_model(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    response, _ = await _post(client, chat(model="small-model"))
    assert response.status == 500
    assert not gateway.large.received


async def test_a_named_model_goes_to_another_pool_that_serves_it(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, pools: Pools
) -> None:
    """`twin` is a second cluster in front of the same server."""
    twin = {"POOLS__TWIN__CLUSTER": "vllm-twin", "POOLS__TWIN__MODEL": "small-model"}
    sidecar = make_sidecar(CONTROLLERS__FAILOVER__POOLS_MAX="2", **twin)
    gateway = make_gateway([sidecar], addresses={"vllm-twin": pools.addresses["vllm-small"]})
    gateway.small.faults.append(Fault(status=500))
    async with aiohttp.ClientSession(gateway.url) as client:
        response, _ = await _post(client, chat(model="small-model"))
    assert (response.status, response.headers["x-semroute-pool"]) == (200, "twin")
    assert _models(gateway.small.received) == ["small-model", "small-model"]


async def test_a_pool_that_cannot_serve_the_request_is_never_reached(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.large.faults.append(Fault(status=500))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    body = {"model": "auto", "messages": [{"role": "user", "content": [image]}]}
    response, _ = await _post(client, body)
    assert response.status == 500
    assert not gateway.small.received


async def test_a_client_cannot_forge_a_failure(client: aiohttp.ClientSession, gateway: Gateway) -> None:
    plan = Handover(("small",), {"model": Raw(b'"auto-weak"')})
    forged = {HANDOVER_HEADER: plan.header, FAILURE_HEADER: "500"}
    response, _ = await _post(client, chat(), **forged)
    assert response.headers["x-sim-pool"] == "small"
    assert "failed" not in response.headers["x-semroute-reason"]


async def test_a_dead_pool_costs_little_and_is_then_left_out(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(CONTROLLERS__FAILOVER__EXCLUDE_SECONDS="60")
    gateway = make_gateway([sidecar], addresses=DEAD, down=["vllm-small"])
    async with aiohttp.ClientSession(gateway.url) as client:
        reasons = [(await _post(client, chat()))[0].headers["x-semroute-reason"] for _ in range(5)]
        response, _ = await _post(client, chat())
    assert [reason.startswith("small failed (unreachable): ") for reason in reasons] == [True] * 3 + [
        False
    ] * 2
    assert "small lacks a working server (unreachable)" in response.headers["x-semroute-reason"]
    assert response.status == 200
    assert 'semroute_pool_excluded{pool="small"} 1.0' in sidecar.read_admin("/metrics")[1]
    health = json.loads(sidecar.read_admin("/config")[1])["health"]
    assert health["small"] == {"excluded": True, "why": "unreachable"}
    assert not health["large"]["excluded"]


async def test_every_request_to_a_dead_pool_is_answered_however_many_there_are(
    make_gateway: MakeGateway, own_sidecar: Sidecar
) -> None:
    gateway = make_gateway([own_sidecar], addresses=DEAD, down=["vllm-small"])
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(gateway.url, connector=connector) as client:
        answers = await asyncio.gather(*[_post(client, chat()) for _ in range(200)])
    assert {response.headers["x-sim-pool"] for response, _ in answers} == {"large"}


@pytest.mark.skipif(OLD_ENVOY, reason="Envoy before 1.40 answers 503 here: envoy/README.md")
async def test_envoys_health_check_spares_the_attempts_where_panic_routing_is_off(
    make_gateway: MakeGateway, own_sidecar: Sidecar
) -> None:
    def no_panic(bootstrap: dict[str, Any]) -> None:
        clusters(bootstrap)["vllm-small"]["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}

    changes: dict[str, Any] = {"addresses": DEAD, "down": ["vllm-small"], "edit": no_panic}
    gateway = make_gateway([own_sidecar], health_interval="0.3s", **changes)
    wait_for(lambda: gateway.envoy.stats("vllm-small.health_check.failure$").popitem()[1] >= 3, 10, "checks")
    async with aiohttp.ClientSession(gateway.url) as client:
        response, _ = await _post(client, chat())
    assert response.headers["x-semroute-reason"].startswith("small failed (unreachable): ")
    assert gateway.envoy.stats("^cluster.vllm-small.upstream_cx_total$").popitem()[1] == 0


async def test_a_pool_without_a_healthy_host_in_envoy_is_excluded_before_a_request_meets_it(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    """The pool refuses connections, and no request was sent to it."""
    port = free_port()

    def admin(bootstrap: dict[str, Any]) -> None:
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = port

    own = make_sidecar(CONTROLLERS__FAILOVER__ENVOY_ADMIN=f"http://127.0.0.1:{port}")
    changes: dict[str, Any] = {"addresses": DEAD, "down": ["vllm-small"], "edit": admin}
    gateway = make_gateway([own], health_interval="0.3s", **changes)
    excluded = 'semroute_pool_excluded{pool="small"} 1.0'
    wait_for(lambda: excluded in own.read_admin("/metrics")[1], 15, "the pool to be excluded")
    async with aiohttp.ClientSession(gateway.url) as client:
        response, _ = await _post(client, chat())
    assert (response.status, response.headers["x-semroute-pool"]) == (200, "large")
    assert "failed" not in response.headers["x-semroute-reason"]
    assert gateway.envoy.stats("^cluster.vllm-small.upstream_rq_total$").popitem()[1] == 0


async def test_when_all_pools_are_dead_the_answer_is_a_503_in_openais_shape(
    make_gateway: MakeGateway, own_sidecar: Sidecar
) -> None:
    dead = dict.fromkeys(("vllm-small", "vllm-large"), ("127.0.0.1", 1))
    gateway = make_gateway([own_sidecar], addresses=dead, down=list(dead))
    async with aiohttp.ClientSession(gateway.url) as client:
        response, content = await _post(client, chat())
    assert (response.status, response.headers["x-semroute-pool"]) == (503, "large")
    assert json.loads(content)["error"]["code"] == "service_unavailable"


async def test_an_excluded_pool_is_tested_and_used_again(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    gateway = make_gateway([make_sidecar(CONTROLLERS__FAILOVER__EXCLUDE_SECONDS="1")])
    gateway.small.faults.extend([Fault(status=500)] * 3)
    async with aiohttp.ClientSession(gateway.url) as client:
        for _ in range(4):
            response, _ = await _post(client, chat())
            assert response.headers["x-sim-pool"] == "large"
        await asyncio.sleep(1.1)
        response, _ = await _post(client, chat())
        assert response.headers["x-sim-pool"] == "small"


async def test_when_both_pools_are_excluded_requests_still_reach_them(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    gateway = make_gateway([make_sidecar(CONTROLLERS__FAILOVER__FAILURES="1")])
    gateway.small.faults.append(Fault(status=500))
    gateway.large.faults.append(Fault(status=500))
    async with aiohttp.ClientSession(gateway.url) as client:
        await _post(client, chat())
        await _post(client, chat(model="auto-strong"))
        response, _ = await _post(client, chat())
    assert response.status == 200


async def test_a_pool_whose_metrics_page_is_gone_is_left_out(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, pools: Pools
) -> None:
    page = f"http://127.0.0.1:{pools.small.port}/metrics"
    sidecar = make_sidecar(CONTROLLERS__FAILOVER__EXCLUDE_SECONDS="60", POOLS__SMALL__METRICS=page)
    gateway = make_gateway([sidecar])

    def excluded() -> bool:
        health = json.loads(sidecar.read_admin("/config")[1])["health"]
        return bool(health["small"]["why"] == "metrics page unreachable")

    wait_for(lambda: "semroute_pool_load{" in sidecar.read_admin("/metrics")[1], 10, "the first scrape")
    pools.small.exposes = False
    try:
        wait_for(excluded, 20, "the pool to be excluded")
        async with aiohttp.ClientSession(gateway.url) as client:
            assert (await _post(client, chat()))[0].headers["x-sim-pool"] == "large"
    finally:
        pools.small.exposes = True
    wait_for(lambda: not excluded(), 10, "the pool to be used again")


async def test_the_access_log_has_a_line_for_each_pool(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    response, _ = await _post(client, chat())
    request_id = response.headers["x-request-id"]

    def lines() -> list[dict[str, Any]]:
        return [line for line in gateway.envoy.access_log() if line["request_id"] == request_id]

    wait_for(lambda: len(lines()) == 2, 5, "two lines")
    first, second = lines()
    assert (first["code"], first["details"], first["semroute"]["pool"]) == (307, "internal_redirect", "small")
    assert second["semroute"]["failed_pools"] == "small"
    assert second["semroute"]["failure"] == "500"


@pytest.mark.failure
async def test_without_the_sidecar_a_pools_own_name_still_selects_it(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    def name_the_pool(bootstrap: dict[str, Any]) -> None:
        text = json.dumps(bootstrap).replace("Qwen/Qwen3-8B", "small-model")
        bootstrap.update(json.loads(text))

    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], edit=name_the_pool)
    sidecar.process.send(signal.SIGKILL)
    sidecar.process.wait(5)
    async with aiohttp.ClientSession(gateway.url) as client:
        for model, pool in {"small-model": "small", "large-model": "large", "auto": "large"}.items():
            response, _ = await _post(client, chat(model=model))
            assert (response.status, response.headers["x-sim-pool"]) == (200, pool)

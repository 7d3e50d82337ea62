"""What a client must not be able to do: choose its cluster, or exhaust the gateway."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp
import pytest
from gateway import (
    CONTROL,
    Gateway,
    chat,
    chunked,
    connect,
    dump,
    raw_request,
    read_response,
    send_until_answered,
    wait_for,
)
from semroute_bench.measuring import cpu_seconds
from semroute_demo.envoy import Bootstrap, connection_manager
from semroute_demo.sidecar import Sidecar

from semroute_extproc.request.paths import PATHS

SPOOFED = {"x-semroute-cluster": "vllm-small", "x-gateway-destination-endpoint": "10.0.0.1:80"}
CAP = 32 * 1024 * 1024


async def test_a_spoofed_routing_header_changes_nothing_while_the_sidecar_is_up(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    async with client.post(
        "/v1/chat/completions", json=chat(model="auto-strong"), headers=SPOOFED
    ) as response:
        assert response.headers["x-sim-pool"] == "large"
    async with client.get("/v1/models/unheard-of", headers=SPOOFED) as response:
        assert gateway.large.received or response.status == 404
    assert not gateway.small.received
    assert not set(SPOOFED) & set(gateway.large.received[0].headers)


@pytest.mark.failure
async def test_a_spoofed_routing_header_changes_nothing_while_the_sidecar_is_dead(
    make_gateway: Callable[..., Gateway], make_sidecar: Callable[..., Sidecar]
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar])
    sidecar.process.send(9)
    sidecar.process.wait(5)
    async with (
        aiohttp.ClientSession(gateway.url) as session,
        session.post("/v1/chat/completions", json=chat(model="large-model"), headers=SPOOFED) as response,
    ):
        assert response.status == 200
        assert response.headers["x-sim-pool"] == "large"
    assert not gateway.small.received


async def test_a_header_with_underscores_is_accepted_and_cannot_stand_for_ours(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    headers = {"session_id": "s1", "x_semroute_cluster": "vllm-small", "x_semroute_tenant": "acme"}
    async with client.post(
        "/v1/chat/completions", json=chat(model="auto-strong"), headers=headers
    ) as response:
        assert response.status == 200
        assert response.headers["x-sim-pool"] == "large"
    received = gateway.large.received[-1].headers
    assert received["session_id"] == "s1"
    assert not {"x_semroute_cluster", "x_semroute_tenant"} & set(received)


async def test_the_tenant_comes_from_an_authentication_filter_and_not_from_the_client(
    make_gateway: Callable[..., Gateway], make_sidecar: Callable[..., Sidecar]
) -> None:
    """A key is replaced with its owner's name before the sidecar is asked; the shipped file has no keys."""

    def with_keys(bootstrap: Bootstrap) -> None:
        package = "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3"
        keys = {
            "@type": f"{package}.ApiKeyAuth",
            "credentials": [{"key": "k1", "client": "acme"}, {"key": "k2", "client": "other"}],
            "key_sources": [{"header": "x-api-key"}],
            "forwarding": {"header": "x-semroute-tenant"},
        }
        filters = connection_manager(bootstrap)["http_filters"]
        filters.insert(0, {"name": "envoy.filters.http.api_key_auth", "typed_config": keys})

    rules = '[{name: acme, when: \'request.tenant == "acme"\', deny: "acme has no access"}]'
    sidecar = make_sidecar(POLICIES__STRONG__RULES=rules)
    gateway = make_gateway([sidecar], edit=with_keys, answering=False)
    async with aiohttp.ClientSession(gateway.url) as session:
        for key, status in (("k1", 403), ("k2", 200), ("k3", 401)):
            for spoofed in ({}, {"x-semroute-tenant": "acme"}):
                headers = {"x-api-key": key, **spoofed}
                body = chat(model="auto-strong")
                async with session.post("/v1/messages", json=body, headers=headers) as response:
                    answer = await response.json()
                assert response.status == status, (key, spoofed)
                if status == 403:
                    assert answer["type"] == "error"
                    assert answer["error"]["message"] == "acme has no access."


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_envoys_own_errors_have_the_shape_of_both_apis(gateway: Gateway, path: str) -> None:
    head = [f"POST {path} HTTP/1.1", "host: x", *(f"x-{number}: y" for number in range(200))]
    with connect(gateway) as connection:
        connection.sendall(raw_request(head))
        response = read_response(connection)
    assert response.status == 431
    assert response.json["type"] == "error"
    assert set(response.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_declared_length_over_the_cap_is_refused_before_the_upload(gateway: Gateway, path: str) -> None:
    head = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {CAP + 1}",
    ]
    with connect(gateway) as connection:
        connection.sendall(raw_request(head))
        response = read_response(connection)
    assert response.status == 413
    assert response.json["error"]["code"] == "request_too_large"
    assert (response.json.get("type") == "error") == (path == "/v1/messages")


def test_a_chunked_body_over_the_cap_is_refused_in_openais_shape(gateway: Gateway) -> None:
    """Envoy's own limit: the sidecar has not seen the body."""
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        "content-type: application/json",
        "transfer-encoding: chunked",
    ]
    # The head goes first: a client that is a network away cannot send 32 MiB before the sidecar has
    # answered it, and what happens if it could is described in envoy/README.md.
    before = gateway.counter("stream_msgs_received")
    with connect(gateway) as connection:
        connection.sendall(raw_request(head))
        wait_for(lambda: gateway.counter("stream_msgs_received") > before, 5, "the sidecar's first reply")
        data = chunked([b"x" * 1_000_000] * 35)
        send_until_answered(connection, data)
        response = read_response(connection)
    assert response.status == 413
    assert response.headers["content-type"] == "application/json"
    assert response.json["error"]["code"] == "request_too_large"
    assert response.json["error"]["param"] is None


def test_a_body_just_below_the_cap_is_routed(gateway: Gateway) -> None:
    body = dump(chat("x" * (CAP - 4_096)))
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    with connect(gateway) as connection:
        connection.sendall(raw_request(head) + body)
        response = read_response(connection)
    assert response.status == 200
    assert response.headers["x-sim-pool"] == "small"
    assert gateway.small.received[-1].length == len(body) + len("small-model") - len("auto-weak")


@pytest.mark.parametrize(("count", "pool"), [(5, "small"), (3_000_000, "large")], ids=["small", "large"])
def test_envoy_reads_the_model_of_small_undecided_bodies_only(
    gateway: Gateway, count: int, pool: str
) -> None:
    """Envoy's own reader of JSON holds its worker, and so every client of it, for a microsecond per value."""
    body = b'{"model": "Qwen/Qwen3-8B", "messages": [], "a": [%b0]}' % (b"[]," * count)
    many = [f"x-{number}: y" for number in range(110)]  # the sidecar decides nothing for so many headers
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    head += [f"content-length: {len(body)}", *many]
    before = cpu_seconds(gateway.envoy.process.pid)
    with connect(gateway) as connection:
        connection.sendall(raw_request(head) + body)
        response = read_response(connection)
    assert response.headers["x-sim-pool"] == pool
    assert cpu_seconds(gateway.envoy.process.pid) - before < 0.3


@pytest.mark.parametrize("path", CONTROL)
def test_a_path_that_controls_a_server_does_not_reach_it(gateway: Gateway, path: str) -> None:
    for method in ("GET", "POST"):
        with connect(gateway) as client:
            client.sendall(
                f"{method} {path or '/'} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n".encode()
            )
            response = read_response(client)
        assert response.status == 404, path
        assert response.json["error"]["message"] == "This gateway does not serve this path."
    assert not gateway.small.received
    assert not gateway.large.received


def test_every_path_that_the_sidecar_knows_is_served(gateway: Gateway) -> None:
    known = [*PATHS]
    others = [
        "/v1/models",
        "/v1/realtime",
        "/v1/embeddings?a=1",
        "/health",
        "/chat/completions",
        "/v1%2Fmodels",
    ]
    for path in (
        *known,
        *(f"/openai{path}" for path in known),
        *others,
        "/openai/deployments/a/chat/completions",
    ):
        with connect(gateway) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
            assert b"does not serve this path" not in read_response(client).body, path

"""Every body mode an operator may configure, trailers, upgrades, HTTP/2 and observability."""

from __future__ import annotations

import hashlib
import io
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import h2.config
import h2.connection
import h2.events
import pytest
from gateway import (
    Gateway,
    RawUpstream,
    chat,
    chunked,
    connect,
    dump,
    raw_request,
    read_response,
    wait_for,
)
from semroute_demo.envoy import Bootstrap, connection_manager
from semroute_demo.pool import Fault
from semroute_demo.sidecar import Sidecar

JSON = {"content-type": "application/json"}
NO_OVERRIDE = {"allow_mode_override": False, "allowed_override_modes": None}
DUPLEX = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
RESPONSE = {"response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND"}

ROUTED_MODES = {
    "NONE with override": ({}, {}),
    "BUFFERED": ({"request_body_mode": "BUFFERED"}, {}),
    "BUFFERED without override": ({"request_body_mode": "BUFFERED"}, NO_OVERRIDE),
    "BUFFERED_PARTIAL with override": ({"request_body_mode": "BUFFERED_PARTIAL"}, {}),
    "STREAMED with override": ({"request_body_mode": "STREAMED"}, {}),
    "FULL_DUPLEX_STREAMED": (DUPLEX, {}),
    "NONE with override, trailers": ({"request_trailer_mode": "SEND"}, {}),
    "BUFFERED, response STREAMED": ({"request_body_mode": "BUFFERED", **RESPONSE}, {}),
    "NONE with override, response STREAMED": (RESPONSE, {}),
    "FULL_DUPLEX_STREAMED in both directions": (
        {**DUPLEX, **RESPONSE, "response_body_mode": "FULL_DUPLEX_STREAMED"},
        {},
    ),
}


@pytest.fixture(params=ROUTED_MODES, ids=str)
def routed(request: pytest.FixtureRequest, make_gateway: Callable[..., Gateway], sidecar: Sidecar) -> Gateway:
    mode, changes = ROUTED_MODES[request.param]
    return make_gateway([sidecar], processing_mode=mode, ext_proc=changes)


async def test_a_mode_that_shows_the_whole_body_routes_by_it(routed: Gateway) -> None:
    """Small, large and chunked bodies, streamed answers, what is not routed, and all of it on one connection.

    A wrong length would poison the request that follows on the same upstream connection.
    """
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(routed.url, connector=connector) as client:
        for text in ("hi", "word " * 40_000, "word " * 200_000, "hi"):
            body = dump(chat(text))
            for data in (io.BytesIO(body), _pieces(body)):
                async with client.post("/v1/chat/completions", data=data, headers=JSON) as response:
                    assert response.status == 200, await response.text()
                    assert response.headers["x-sim-pool"] == response.headers["x-semroute-pool"] == "small"
                expected = body.replace(b"auto-weak", b"small-model")
                received = routed.small.received[-1]
                assert received.sha256 == hashlib.sha256(expected).hexdigest()
                assert received.headers.get("content-length", str(len(expected))) == str(len(expected))
        routed.small.received.clear()
        routed.small.faults.append(Fault(status=503))
        async with client.post("/v1/chat/completions", json=chat("word " * 10_000)) as response:
            assert response.status == 200
        first, second = routed.small.received
        assert first.sha256 == second.sha256, "a retry replays another body"
        async with client.post("/v1/chat/completions", json=chat(stream=True)) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        async with client.post("/v1/chat/completions", data=b"", headers=JSON) as response:
            assert response.headers["x-sim-pool"] == "large"
        async with client.post("/v1/chat/completions", data=b"{not json", headers=JSON) as response:
            assert response.headers["x-sim-pool"] == "large"
        assert routed.large.received[-1].body == b"{not json"
        async with client.post("/v1/unheard-of", data=b"x" * 200_000) as response:
            assert response.status == 404
        async with client.get("/health") as response:
            assert response.status == 200


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED_PARTIAL"])
async def test_a_mode_that_shows_pieces_only_passes_through_untouched(
    make_gateway: Callable[..., Gateway], sidecar: Sidecar, mode: str
) -> None:
    """Without the override a long body cannot be decided on: it reaches the default pool as it was."""
    gateway = make_gateway([sidecar], processing_mode={"request_body_mode": mode}, ext_proc=NO_OVERRIDE)
    body = dump(chat("word " * 600_000, model="large-model"))
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", data=_pieces(body), headers=JSON) as response,
    ):
        assert response.status == 200
        assert response.headers["x-sim-pool"] == "large"
    assert gateway.large.received[-1].sha256 == hashlib.sha256(body).hexdigest()


async def test_an_envoy_that_may_not_be_asked_for_the_body_shows_in_the_metrics(
    make_gateway: Callable[..., Gateway], make_sidecar: Callable[..., Sidecar]
) -> None:
    """Nobody is told and nobody fails: without this every request would go unrouted and unseen."""
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], ext_proc=NO_OVERRIDE)
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", data=dump(chat()), headers=JSON) as response,
    ):
        assert response.headers["x-sim-pool"] == "large"
    counted = 'semroute_outcomes_total{cause="no_body",outcome="passthrough"} 1.0'
    wait_for(lambda: counted in sidecar.read_admin("/metrics")[1], 5, "the request to be counted")


async def test_observability_mode_is_answered_with_silence(
    make_gateway: Callable[..., Gateway], sidecar: Sidecar
) -> None:
    """Decisions are made and counted; requests go where they would have gone anyway."""
    gateway = make_gateway(
        [sidecar],
        processing_mode={"request_body_mode": "STREAMED"},
        ext_proc={"observability_mode": True, **NO_OVERRIDE},
        answering=False,
    )
    before = _decisions(sidecar)
    body = dump(chat(model="large-model"))
    async with aiohttp.ClientSession(gateway.url) as client:
        for _ in range(3):
            async with client.post("/v1/chat/completions", data=body, headers=JSON) as response:
                assert response.headers["x-sim-pool"] == "large"
                assert "x-semroute-pool" not in response.headers
    assert gateway.large.received[-1].body == body
    wait_for(lambda: _decisions(sidecar) == before + 3, 5, "the three decisions to be counted")
    assert gateway.counter("stream_msgs_received") == 0


async def test_an_answer_given_before_the_sidecar_was_asked_passes(
    make_gateway: Callable[..., Gateway], sidecar: Sidecar
) -> None:
    """A filter in front refuses: the first that the sidecar hears of the request is its answer."""
    abort = {
        "name": "envoy.filters.http.fault",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {"http_status": 401, "percentage": {"numerator": 100}},
            "headers": [{"name": "x-refuse", "present_match": True}],
        },
    }
    gateway = make_gateway(
        [sidecar],
        processing_mode=RESPONSE,
        edit=lambda bootstrap: connection_manager(bootstrap)["http_filters"].insert(0, abort),
    )
    before = gateway.counter("stream_msgs_received")
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat(), headers={"x-refuse": "1"}) as response,
    ):
        assert response.status == 401
        assert (await response.json())["error"]["type"] == "invalid_request_error"
    assert gateway.counter("stream_msgs_received") > before


@pytest.fixture
def upstream() -> Iterator[RawUpstream]:
    running = RawUpstream()
    yield running
    running.close()


@pytest.mark.parametrize(
    ("mode", "kept"),
    [({}, False), ({"request_trailer_mode": "SEND"}, False), (DUPLEX, True)],
    ids=["not sent to the sidecar", "sent to the sidecar", "duplex"],
)
def test_trailers_do_no_harm(
    make_gateway: Callable[..., Gateway],
    sidecar: Sidecar,
    upstream: RawUpstream,
    mode: dict[str, str],
    kept: bool,
) -> None:
    """The answer's come through; the request's where the body stays chunked: HTTP/1.1 has none with a length.

    Full duplex runs without retries: with them Envoy 1.40 sends the body of a request with trailers twice.
    """

    def edit(bootstrap: Bootstrap) -> None:
        if mode is DUPLEX:
            del connection_manager(bootstrap)["route_config"]["virtual_hosts"][0]["retry_policy"]

    addresses = {"vllm-small": upstream.address}
    gateway = make_gateway([sidecar], processing_mode=mode, addresses=addresses, edit=edit)
    body = dump(chat())
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json", "te: trailers"]
    with connect(gateway) as connection:
        for _ in range(2):
            head_bytes = raw_request([*head, "transfer-encoding: chunked", "trailer: x-check"])
            connection.sendall(head_bytes + chunked([body[:20], body[20:]], ["x-check: 7"]))
            response = read_response(connection)
            assert response.status == 200
            assert response.body == b"hello"
            assert response.headers["trailer:x-checksum"] == "42"
    assert len(upstream.requests) == 2
    for request in upstream.requests:
        assert request.body == body.replace(b"auto-weak", b"small-model")
        assert request.headers.get("trailer:x-check") == ("7" if kept else None)


def test_the_length_upstream_is_exactly_the_new_bodys(
    make_gateway: Callable[..., Gateway], sidecar: Sidecar, upstream: RawUpstream
) -> None:
    gateway = make_gateway([sidecar], addresses={"vllm-small": upstream.address})
    body = dump(chat("grüße 你好"))
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    with connect(gateway) as connection:
        connection.sendall(raw_request([*head, f"content-length: {len(body)}"]) + body)
        assert read_response(connection).status == 200
    (request,) = upstream.requests
    assert request.body == body.replace(b"auto-weak", b"small-model")
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_upgrade_is_passed_through_and_not_waited_for(
    make_gateway: Callable[..., Gateway], sidecar: Sidecar, upstream: RawUpstream, method: str
) -> None:
    gateway = make_gateway([sidecar], addresses={"vllm-large": upstream.address})
    head = [
        f"{method} /v1/chat/completions HTTP/1.1",
        "host: x",
        "connection: upgrade",
        "upgrade: websocket",
        "content-type: application/json",
    ]
    with connect(gateway) as connection:
        connection.sendall(raw_request(head))
        assert read_response(connection).status == 101
        for word in (b"one", b"two"):
            connection.sendall(word)
            assert connection.recv(100) == word.upper()


def test_http2_clients_are_served_with_trailers_too(gateway: Gateway) -> None:
    body = dump(chat())
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=10) as connection:
        status, answer = _http2_post(connection, "/v1/chat/completions", body, [("x-check", "7")])
    assert status == "200"
    assert json.loads(answer)["model"] == "small-model"


def _http2_post(
    connection: socket.socket, path: str, body: bytes, trailers: list[tuple[str, str]]
) -> tuple[str, bytes]:
    """One POST with prior knowledge of HTTP/2, ended by trailers; gives status and body."""
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http2.initiate_connection()
    head = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x"), *JSON.items()]
    http2.send_headers(1, head)
    http2.send_data(1, body)
    http2.send_headers(1, trailers, end_stream=True)
    status, content = "", b""
    while True:
        connection.sendall(http2.data_to_send())
        received = connection.recv(65_536)
        assert received, "the connection was closed"
        for event in http2.receive_data(received):
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers or [])[b":status"].decode()
            elif isinstance(event, h2.events.DataReceived):
                content += event.data or b""
                http2.acknowledge_received_data(event.flow_controlled_length or 0, 1)
            elif isinstance(event, h2.events.StreamEnded):
                return status, content


async def _pieces(body: bytes) -> Any:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


def _decisions(sidecar: Sidecar) -> float:
    """All decisions the sidecar has counted."""
    _, text = sidecar.read_admin("/metrics")
    lines = [line for line in text.splitlines() if line.startswith("semroute_decisions_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

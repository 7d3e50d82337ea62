"""A request that is not decided is counted by the metrics that the shipped alerts look at."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import pytest
from alerts import ALERTS, Selector, selectors
from gateway import Gateway, chat, connect, dump, raw_request, wait_for
from semroute_demo.envoy import Bootstrap, clusters, connection_manager
from semroute_demo.pool import Fault
from semroute_demo.sidecar import Sidecar

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]
JSON = {"content-type": "application/json"}
FORM = "multipart/form-data; boundary=x"
PATH = "/v1/chat/completions"
PART: dict[str, Any] = {"type": "text", "text": ""}
Spec = tuple[str, str, bytes, Mapping[str, str]]

UNDECIDED: Mapping[str, tuple[str, Spec]] = {
    "method": ("SemrouteNotRoutable", ("PUT", PATH, dump(chat()), JSON)),
    "unknown_path": ("SemrouteNotRoutable", ("POST", "/v1/unknown", dump(chat()), JSON)),
    "content_type": ("SemrouteNotRoutable", ("POST", PATH, dump(chat()), {"content-type": "text/plain"})),
    "empty_body": ("SemrouteNotRoutable", ("POST", PATH, b"", JSON)),
    "upload": (
        "SemrouteNotRoutable",
        (
            "POST",
            "/v1/audio/transcriptions",
            b"x" * 34_000_000,
            {"content-type": "multipart/form-data; boundary=x"},
        ),
    ),
    "not_json": ("SemrouteUnreadableBodies", ("POST", PATH, b'{"model": "auto"', JSON)),
    "too_deep": (
        "SemrouteUnreadableBodies",
        ("POST", PATH, b'{"model": "auto", "messages": ' + b"[" * 100_000, JSON),
    ),
    "wrong_type": ("SemrouteUnreadableBodies", ("POST", PATH, dump({"model": "auto", "messages": 5}), JSON)),
    "too_many_parts": (
        "SemrouteUnreadableBodies",
        ("POST", PATH, dump({"model": "auto", "messages": [{"content": [PART] * 20_000}]}), JSON),
    ),
    "bad_encoding": (
        "SemrouteUnreadableBodies",
        ("POST", PATH, gzip.compress(dump(chat()))[:-9], {**JSON, "content-encoding": "gzip"}),
    ),
    "no_model": ("SemrouteUnknownModels", ("POST", PATH, b'{"messages": []}', JSON)),
    "unknown_model": ("SemrouteUnknownModels", ("POST", PATH, dump(chat(model="other")), JSON)),
    "no_text": ("SemrouteNoText", ("POST", "/v1/completions", b'{"model": "auto", "prompt": [1, 2]}', JSON)),
    "unsupported_encoding": (
        "SemrouteRejections",
        ("POST", PATH, dump(chat()), {**JSON, "content-encoding": "compress"}),
    ),
    "no_pool": (
        "SemrouteRejections",
        ("POST", PATH, dump({"model": "auto", "messages": [{"content": [{"type": "input_audio"}]}]}), JSON),
    ),
    "body_too_large": ("SemrouteRejections", ("POST", PATH, b"x" * 33_600_000, JSON)),
}
"""Cause to its alert, and a request with that cause: method, path, body and headers."""


def counted(sidecar: Sidecar, alert: str) -> float:
    """What the numerator of an alert's expression looks at."""
    return selectors(alert)[0].total(sidecar.read_admin("/metrics")[1])


def of_cause(sidecar: Sidecar, cause: str) -> float:
    selector = Selector("semroute_outcomes_total", (("cause", "=", cause),))
    return selector.total(sidecar.read_admin("/metrics")[1])


@pytest.mark.parametrize("cause", UNDECIDED)
async def test_an_undecided_request_is_counted_where_its_alert_looks(
    client: aiohttp.ClientSession, gateway: Gateway, sidecar: Sidecar, cause: str
) -> None:
    alert, (method, path, body, headers) = UNDECIDED[cause]
    before, causes = counted(sidecar, alert), of_cause(sidecar, cause)
    async with client.request(
        method, path, data=io.BytesIO(body) if body else None, headers=headers
    ) as response:
        await response.read()
    wait_for(lambda: of_cause(sidecar, cause) == causes + 1, 10, f"{cause} to be counted")
    assert counted(sidecar, alert) == before + 1


def test_an_upgrade_is_counted_where_its_alert_looks(gateway: Gateway, sidecar: Sidecar) -> None:
    before = counted(sidecar, "SemrouteNotRoutable")
    with connect(gateway) as connection:
        head = [
            f"POST {PATH} HTTP/1.1",
            "host: x",
            "connection: upgrade",
            "upgrade: websocket",
            "content-length: 0",
        ]
        connection.sendall(raw_request(head))
        wait_for(
            lambda: counted(sidecar, "SemrouteNotRoutable") == before + 1, 10, "the upgrade to be counted"
        )
    assert of_cause(sidecar, "upgrade") >= 1


async def test_a_decision_after_its_deadline_is_counted_where_its_alert_looks(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(SERVER__DEADLINE_MS="0.001")
    gateway = make_gateway([sidecar])
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post(PATH, json=chat()) as response,
    ):
        assert response.status == 200
    wait_for(lambda: counted(sidecar, "SemrouteOverloaded") == 1, 5, "the fallback to be counted")


def watched(gateway: Gateway, alert: str) -> float:
    """What Envoy counts of the metrics in an alert's expression."""
    page = gateway.envoy.read_admin("/stats/prometheus")
    return sum(each.total(page) for each in selectors(alert))


def test_envoy_has_every_metric_that_an_alert_looks_at(gateway: Gateway) -> None:
    page = gateway.envoy.read_admin("/stats/prometheus")
    ours = [
        (alert, each) for alert in ALERTS for each in selectors(alert) if each.metric.startswith("envoy_")
    ]
    assert len(ours) >= 7
    for alert, selector in ours:
        assert f"\n{selector.metric}{{" in page, alert
        assert all(f'{label}="{value}"' in page for label, _, value in selector.labels)
    assert watched(gateway, "SemrouteUnhealthy") == 1, "the sidecar is healthy"


@pytest.mark.failure
async def test_a_sidecar_that_is_gone_shows_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], health_interval="0.3s")
    sidecar.process.send(signal.SIGKILL)
    sidecar.process.wait(5)
    async with aiohttp.ClientSession(gateway.url) as client:
        async with client.post(PATH, json=chat(model="large-model")) as response:
            assert response.status == 200
        assert watched(gateway, "SemrouteBypassed") >= 1
        wait_for(lambda: watched(gateway, "SemrouteUnhealthy") == 0, 10, "Envoy to notice")


@pytest.mark.failure
async def test_a_sidecar_that_does_not_answer_in_time_shows_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], ext_proc={"message_timeout": "0.3s"}, health_interval="60s")
    sidecar.process.send(signal.SIGSTOP)
    try:
        async with (
            aiohttp.ClientSession(gateway.url) as client,
            client.post(PATH, json=chat(model="large-model")) as response,
        ):
            assert response.status == 200
    finally:
        sidecar.process.send(signal.SIGCONT)
    assert watched(gateway, "SemrouteTimeouts") >= 1


@contextlib.contextmanager
def upload(gateway: Gateway, sidecar: Sidecar, open_: int = 1) -> Iterator[None]:
    """A request whose body does not arrive, so that its stream stays open, as the last of `open_`."""
    head = [f"POST {PATH} HTTP/1.1", "host: x", *(f"{key}: {value}" for key, value in JSON.items())]
    with connect(gateway) as connection:
        connection.sendall(raw_request([*head, "transfer-encoding: chunked"]) + b"1\r\n{\r\n")
        shown = f"semroute_inflight_streams {open_}.0"
        wait_for(lambda: shown in sidecar.read_admin("/metrics")[1], 5, "the upload to hold its stream")
        yield


@pytest.mark.failure
async def test_streams_beyond_the_sidecars_limit_are_counted_where_the_alert_looks(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar(SERVER__STREAMS_MAX="2")
    # Only in this mode does a body arrive in pieces: a stream that waits for a whole one is passed on.
    duplex = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
    gateway = make_gateway([sidecar], processing_mode=duplex)
    with upload(gateway, sidecar), upload(gateway, sidecar, 2):
        async with (
            aiohttp.ClientSession(gateway.url) as client,
            client.post(PATH, json=chat(model="large-model")) as response,
        ):
            assert response.status == 503, "in this mode Envoy cannot send a refused request on"
        wait_for(lambda: counted(sidecar, "SemrouteStreamsRefused") >= 1, 5, "the refusal to be counted")


@pytest.mark.failure
async def test_an_open_circuit_breaker_shows_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    def narrow(bootstrap: Bootstrap) -> None:
        [threshold] = clusters(bootstrap)["semroute"]["circuit_breakers"]["thresholds"]
        threshold["max_requests"] = 1

    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], edit=narrow)
    with upload(gateway, sidecar):
        async with aiohttp.ClientSession(gateway.url) as client:
            requests = [client.post(PATH, json=chat(model="large-model")) for _ in range(4)]
            for response in await asyncio.gather(*requests):
                assert response.status == 200
                await response.read()
        assert watched(gateway, "SemrouteCircuitOpen") >= 1
        assert watched(gateway, "SemrouteBypassed") >= 1


@pytest.mark.failure
async def test_a_pool_with_more_requests_than_its_limit_shows_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    def narrow(bootstrap: Bootstrap) -> None:
        [threshold] = clusters(bootstrap)["vllm-small"]["circuit_breakers"]["thresholds"]
        threshold |= {"max_connections": 1, "max_pending_requests": 1}

    gateway = make_gateway([make_sidecar()], edit=narrow)
    async with aiohttp.ClientSession(gateway.url) as client:
        requests = [client.post(PATH, json=chat(model="small-model")) for _ in range(8)]
        for response in await asyncio.gather(*requests):
            await response.read()
    assert watched(gateway, "SemroutePoolCircuitOpen") >= 1


@pytest.mark.failure
async def test_connections_beyond_the_limit_show_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    def narrow(bootstrap: Bootstrap) -> None:
        [monitor] = [
            each["typed_config"]
            for each in bootstrap["overload_manager"]["resource_monitors"]
            if "max_active_downstream_connections" in each["typed_config"]
        ]
        monitor["max_active_downstream_connections"] = 4

    gateway = make_gateway([make_sidecar()], edit=narrow)
    with contextlib.ExitStack() as idle:
        for _ in range(8):
            idle.enter_context(connect(gateway))
        wait_for(lambda: watched(gateway, "SemrouteConnectionsFull") >= 1, 5, "the alert's metric")


@pytest.mark.failure
async def test_a_failover_that_envoy_refuses_shows_in_envoys_metrics(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    def refuse(bootstrap: Bootstrap) -> None:
        [host] = connection_manager(bootstrap)["route_config"]["virtual_hosts"]
        [route] = [each for each in host["routes"] if each["name"] == "picked-or-next"]
        route["route"]["internal_redirect_policy"]["max_internal_redirects"] = 0

    gateway = make_gateway([make_sidecar(CONTROLLERS__FAILOVER="{}")], edit=refuse)
    gateway.small.faults.append(Fault(status=500))
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post(PATH, json=chat(), allow_redirects=False) as response,
    ):
        assert response.status == 307
    assert watched(gateway, "SemrouteFailoversLost") == 1

"""What happens when something is slow, stopped, killed, restarted or drained."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from gateway import CONFIG_PATH, Gateway, chat, wait_for
from semroute_demo.pool import Fault
from semroute_demo.sidecar import Sidecar

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]


async def _post(client: aiohttp.ClientSession, model: str = "large-model") -> aiohttp.ClientResponse:
    """A named model of the default pool is served with and without the sidecar."""
    async with client.post("/v1/chat/completions", json=chat(model=model)) as response:
        await response.read()
        return response


async def _routed_again(client: aiohttp.ClientSession) -> bool:
    """Within ten seconds a request is decided again."""
    for _ in range(100):
        if (await _post(client, "auto-weak")).headers.get("x-semroute-pool") == "small":
            return True
        await asyncio.sleep(0.1)
    return False


@pytest.mark.failure
async def test_a_killed_sidecar_leaves_clients_with_the_default_pool(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], health_interval="0.3s")
    async with aiohttp.ClientSession(gateway.url) as client:
        assert "x-semroute-pool" in (await _post(client)).headers
        sidecar.process.send(signal.SIGKILL)
        sidecar.process.wait(5)
        for _ in range(20):
            response = await _post(client)
            assert response.status == 200
            assert response.headers["x-sim-pool"] == "large"
            assert not [name for name in response.headers if name.lower().startswith("x-semroute-")]
        assert gateway.counter("failure_mode_allowed") >= 20
        # It comes back on the same socket, a stale file notwithstanding, and is used again.
        sidecar.start()
        assert await _routed_again(client)


@pytest.mark.failure
async def test_a_stopped_sidecar_costs_at_most_the_message_timeout_and_then_nothing(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], health_interval="0.3s")
    async with aiohttp.ClientSession(gateway.url) as client:
        await _post(client)
        sidecar.process.send(signal.SIGSTOP)
        started = time.monotonic()
        response = await _post(client)
        assert response.headers["x-sim-pool"] == "large"
        assert time.monotonic() - started < 5, "message_timeout is 3 s"
        wait_for(lambda: not gateway.envoy.healthy("semroute"), 10, "Envoy to leave the sidecar out")
        started = time.monotonic()
        assert (await _post(client)).status == 200
        assert time.monotonic() - started < 0.5, "Envoy still waits for a sidecar that it knows to be stuck"
        sidecar.process.send(signal.SIGCONT)
        assert await _routed_again(client)


async def test_a_short_stall_of_the_sidecar_delays_and_changes_nothing(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar])
    async with aiohttp.ClientSession(gateway.url) as client:
        await _post(client, "auto-weak")
        sidecar.process.send(signal.SIGSTOP)
        asyncio.get_running_loop().call_later(0.3, sidecar.process.send, signal.SIGCONT)
        assert (await _post(client, "auto-weak")).headers["x-semroute-pool"] == "small"


@pytest.mark.failure
async def test_without_fail_open_a_dead_sidecar_is_a_503_in_openais_shape(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    sidecar = make_sidecar()
    gateway = make_gateway([sidecar], ext_proc={"failure_mode_allow": False})
    sidecar.process.send(signal.SIGKILL)
    sidecar.process.wait(5)
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat()) as response,
    ):
        error = (await response.json())["error"]
    assert response.status == 503
    assert response.headers["retry-after"] == "1"
    assert error["code"] == "service_unavailable"


async def test_past_its_own_deadline_the_sidecar_answers_with_the_default_pool(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    """Envoy sees no failure, and the reason says what happened."""
    gateway = make_gateway([make_sidecar(SERVER__DEADLINE_MS="0.001")])
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat()) as response,
    ):
        assert response.status == 200
        assert response.headers["x-semroute-outcome"] == "fallback"
        assert response.headers["x-sim-pool"] == "large"
        assert "deadline" in response.headers["x-semroute-reason"]


async def test_a_busy_pool_is_asked_again_with_the_same_body(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.extend([Fault(status=503), Fault(status=503)])
    response = await _post(client, "auto-weak")
    assert response.status == 200
    first, *others = gateway.small.received
    assert len(others) == 2
    assert {again.sha256 for again in others} == {first.sha256}
    assert first.length > 0


async def test_a_pools_own_error_reaches_the_client_as_it_is(
    client: aiohttp.ClientSession, gateway: Gateway
) -> None:
    gateway.small.faults.append(Fault(status=500))
    async with client.post("/v1/chat/completions", json=chat()) as response:
        assert response.status == 500
        assert (await response.json())["error"]["type"] == "InternalServerError"
    assert len(gateway.small.received) == 1


async def test_an_unreachable_pool_is_a_503_in_openais_shape(
    make_gateway: MakeGateway, sidecar: Sidecar
) -> None:
    """Nothing listens on port 1. The decision stands: a pool that is down is not swapped for another."""
    gateway = make_gateway([sidecar], addresses={"vllm-small": ("127.0.0.1", 1)}, down=["vllm-small"])
    async with (
        aiohttp.ClientSession(gateway.url) as client,
        client.post("/v1/chat/completions", json=chat()) as response,
    ):
        error = (await response.json())["error"]
    assert response.status == 503
    assert response.headers["x-semroute-pool"] == "small"
    assert response.headers["retry-after"] == "1"
    assert error["code"] == "service_unavailable"
    assert not gateway.large.received


async def test_a_worker_drains_under_load_without_a_failed_or_undecided_request(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar
) -> None:
    """Two workers, as two sockets of one cluster; one is told to go while requests keep coming."""
    leaving, staying = make_sidecar(SERVER__DRAIN_SECONDS="3"), make_sidecar()
    gateway = make_gateway([leaving, staying], health_interval="0.3s")
    seen: list[tuple[int, str, str]] = []
    stop = asyncio.Event()

    async def load(client: aiohttp.ClientSession) -> None:
        while not stop.is_set():
            response = await _post(client, "auto-weak")
            headers = response.headers
            seen.append((response.status, headers.get("x-semroute-pool", ""), headers.get("x-sim-pool", "")))

    async with aiohttp.ClientSession(gateway.url) as client:
        tasks = [asyncio.create_task(load(client)) for _ in range(8)]
        await asyncio.sleep(1)
        before = len(seen)
        leaving.process.send(signal.SIGTERM)
        status = await asyncio.to_thread(leaving.process.wait, 20)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*tasks)
    assert status == 0
    assert before > 20
    assert len(seen) > before + 20
    assert set(seen) == {(200, "small", "small")}


async def test_a_reload_under_load_moves_traffic_and_fails_no_request(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    config = tmp_path / "live.yaml"
    config.write_text(CONFIG_PATH.read_text())
    sidecar = make_sidecar(config=config)
    gateway = make_gateway([sidecar])
    seen: list[tuple[int, str]] = []
    async with aiohttp.ClientSession(gateway.url) as client:
        for attempt in range(500):
            response = await _post(client, "auto-weak")
            seen.append((response.status, response.headers["x-sim-pool"]))
            if attempt == 10:
                changed = config.read_text().replace(
                    "weak: {otherwise: {strategy: never}}", "weak: {otherwise: {pool: large}}"
                )
                assert changed != config.read_text()
                config.write_text(changed)
            if seen[-1][1] == "large":
                break
    assert {status for status, _ in seen} == {200}
    assert [pool for _, pool in seen] == ["small"] * (len(seen) - 1) + ["large"]
    assert len(seen) > 11

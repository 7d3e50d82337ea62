"""Which clusters take no request, as Envoy's admin page says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from semroute_extproc.events import EnvoyChecked, Event
from semroute_extproc.settings.controllers import Controllers
from semroute_extproc.settings.pools import Pool
from semroute_extproc.state import envoy_health
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.envoy_health import NO_CLUSTER, NO_HOST, UNHEALTHY, problems, watch
from semroute_extproc.telemetry.admin import AdminServer, Page


def page(**clusters: list[dict[str, Any]]) -> bytes:
    statuses = [
        {"name": name, "host_statuses": [{"health_status": each} for each in hosts]}
        for name, hosts in clusters.items()
    ]
    return json.dumps({"cluster_statuses": statuses}).encode()


GOOD = {"eds_health_status": "HEALTHY"}


@pytest.mark.parametrize(
    "bad",
    [
        {"failed_active_health_check": True},
        {"failed_outlier_check": True},
        {"pending_active_hc": True},
        {"excluded_via_immediate_hc_fail": True},
        {"eds_health_status": "UNHEALTHY"},
        {"eds_health_status": "DRAINING"},
    ],
)
def test_a_cluster_takes_requests_while_one_host_is_healthy(bad: dict[str, Any]) -> None:
    assert problems(page(a=[bad, GOOD], b=[bad, bad])) == {"a": "", "b": UNHEALTHY}


@pytest.mark.parametrize("state", [{}, {"eds_health_status": "UNKNOWN"}, {"eds_health_status": "DEGRADED"}])
def test_a_host_without_a_verdict_is_healthy(state: dict[str, Any]) -> None:
    assert problems(page(a=[state])) == {"a": ""}


def test_a_cluster_without_a_host_takes_no_request() -> None:
    assert problems(page(a=[])) == {"a": NO_HOST}


def test_a_pool_is_excluded_as_long_as_envoy_says_so() -> None:
    state = ControllerState()
    pools = {name: Pool(cluster=f"c-{name}", model="m") for name in ("a", "b")}
    state.configure(pools, Controllers.model_validate({"failover": {}}), {})
    state.envoy_checked({"c-a": UNHEALTHY, "c-b": ""})
    assert state.failing(0.0) == state.failing(1e6) == {"a": UNHEALTHY}
    assert state.status()["health"]["a"] == {"excluded": True, "why": UNHEALTHY}
    state.envoy_checked({"c-a": ""})
    assert state.failing(0.0) == {"b": NO_CLUSTER}
    state.envoy_checked({})
    assert state.failing(0.0) == {}, "nothing is known without the page"


async def test_the_page_is_read_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_health, "INTERVAL_SECONDS", 0.01)
    contents = [page(a=[GOOD]), b"not JSON"]
    pages = {"/clusters": lambda: Page(200, "application/json", contents[0])}
    server = AdminServer("127.0.0.1:0", pages)
    seen: list[Event] = []
    task = asyncio.create_task(watch(lambda: f"http://127.0.0.1:{server.port}/", seen.append))
    try:
        async with asyncio.timeout(10):
            while EnvoyChecked({"a": ""}, failed=False) not in seen:
                await asyncio.sleep(0.01)
            del contents[0]
            while EnvoyChecked({}, failed=True) not in seen:
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        server.close()


async def test_without_an_address_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_health, "INTERVAL_SECONDS", 0.01)
    seen: list[Event] = []
    task = asyncio.create_task(watch(lambda: None, seen.append))
    await asyncio.sleep(0.05)
    task.cancel()
    assert set(map(repr, seen)) == {repr(EnvoyChecked({}, failed=False))}

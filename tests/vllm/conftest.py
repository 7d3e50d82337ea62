"""Fixtures of the tests against real vLLM; `make test-vllm` runs them, everything else skips them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from gateway import Gateway, start_gateway, start_sidecar
from semroute_demo.sidecar import Sidecar
from servers import Pools, build_model
from settings import settings, settings_of_clients

PYTHON = os.environ.get("SEMROUTE_VLLM_PYTHON", "")
"""The interpreter of the environment that has vLLM."""

CLEAN = ("failure_mode_allowed", "spurious_msgs_received", "rejected_header_mutations")
"""Envoy's counters that must stay where they are, whatever the pools do."""

REQUEST_SECONDS_MAX = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not PYTHON and "pools" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="needs a real vLLM: make test-vllm"))


def pytest_report_header() -> str | None:
    return f"vLLM of {PYTHON}" if PYTHON else None


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    folder = tmp_path_factory.mktemp("vllm")
    build_model(PYTHON, folder / "model")
    running = Pools(PYTHON, folder / "model", folder)
    try:
        running.ensure()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Iterator[Sidecar]:
    running = _sidecar(tmp_path_factory.mktemp("shared"), settings(pools.metrics))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory, sidecar: Sidecar, pools: Pools) -> Iterator[Gateway]:
    running = _gateway(tmp_path_factory.mktemp("envoy"), sidecar, pools)
    yield running
    running.envoy.stop()


@pytest.fixture(scope="session")
def sidecar_of_clients(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Iterator[Sidecar]:
    running = _sidecar(tmp_path_factory.mktemp("clients"), settings_of_clients(pools.metrics))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def gateway_of_clients(
    tmp_path_factory: pytest.TempPathFactory, sidecar_of_clients: Sidecar, pools: Pools
) -> Iterator[Gateway]:
    """A second gateway, in front of the same servers, with failover, sessions and clamped limits."""
    running = _gateway(tmp_path_factory.mktemp("envoy"), sidecar_of_clients, pools)
    yield running
    running.envoy.stop()


@pytest.fixture(scope="session")
def accounting(tmp_path_factory: pytest.TempPathFactory, pools: Pools) -> Iterator[Gateway]:
    """A third gateway, that accounts for answers and has streams state their usage."""
    written = {**settings(pools.metrics), "accounting": {"include_usage": True}}
    sidecar = _sidecar(tmp_path_factory.mktemp("accounting"), written)
    running = _gateway(tmp_path_factory.mktemp("envoy"), sidecar, pools)
    yield running
    running.envoy.stop()
    sidecar.stop()


def _sidecar(folder: Path, written: Mapping[str, object]) -> Sidecar:
    config = folder / "semroute.yaml"
    config.write_text(json.dumps(written))
    return start_sidecar(folder, config=config)


def _gateway(folder: Path, sidecar: Sidecar, pools: Pools) -> Gateway:
    pools.ensure()
    # How fast a decision is on a machine that also runs two models is not what is asked here.
    patient = {"message_timeout": "30s"}
    return start_gateway(folder, [sidecar], pools, ext_proc=patient)  # type: ignore[arg-type]


@pytest.fixture
def gateway(standard: Gateway, pools: Pools) -> Iterator[Gateway]:
    """The gateway with both servers up; the sidecar must not have failed when the test is over."""
    pools.ensure()
    before = {name: standard.counter(name) for name in CLEAN}
    yield standard
    assert {name: standard.counter(name) for name in CLEAN} == before, "Envoy counted failures of the sidecar"


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX)
    async with aiohttp.ClientSession(gateway.url, timeout=timeout) as session:
        yield session

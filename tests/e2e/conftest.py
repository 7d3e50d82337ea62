"""Fixtures of the end-to-end tests.

`gateway` is the shipped Envoy with the standard sidecar, started once. Every test that is not
marked `failure` must leave Envoy's counters of failed and misunderstood exchanges where they were.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway import Background, Gateway, Pools, start_gateway, start_sidecar
from semroute_demo.sidecar import Sidecar

CLEAN = (
    "failure_mode_allowed",
    "spurious_msgs_received",
    "rejected_header_mutations",
    "clear_route_cache_ignored",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "failure: the sidecar fails on purpose, and Envoy may count it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the ends of the logs of every process a failed test used."""
    report = yield
    if report.failed:
        for gateway in item.stash.get(_USED, []):
            processes = [gateway.envoy.process, *(sidecar.process for sidecar in gateway.sidecars)]
            for process in processes:
                report.sections.append((f"{process.name}: {process.log_path}", process.log_tail(12)))
            if gateway.envoy.access_log_path.is_file():
                lines = gateway.envoy.access_log_path.read_text().splitlines()[-5:]
                report.sections.append(("access log", "\n".join(lines)))
    return report


_USED: pytest.StashKey[list[Gateway]] = pytest.StashKey()


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    background = Background()
    running = Pools(background)
    yield running
    running.stop()
    background.close()


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    running = start_sidecar(tmp_path_factory.mktemp("shared"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def standard(tmp_path_factory: pytest.TempPathFactory, sidecar: Sidecar, pools: Pools) -> Iterator[Gateway]:
    running = start_gateway(tmp_path_factory.mktemp("envoy"), [sidecar], pools)
    yield running
    running.envoy.stop()


@pytest.fixture(scope="module")
def own_sidecar(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """A sidecar of a module's own, with the module's `SETTINGS`."""
    running = start_sidecar(tmp_path_factory.mktemp("own"), **request.module.SETTINGS)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def own_gateway(
    tmp_path_factory: pytest.TempPathFactory, own_sidecar: Sidecar, pools: Pools
) -> Iterator[Gateway]:
    """A gateway with `own_sidecar`; a module that names it `standard` runs all its tests there."""
    running = start_gateway(tmp_path_factory.mktemp("envoy"), [own_sidecar], pools)
    yield running
    running.envoy.stop()


@pytest.fixture
def own_gateways() -> Iterator[list[Gateway]]:
    """The gateways of one test, stopped after their counters were checked."""
    running: list[Gateway] = []
    yield running
    for gateway in running:
        gateway.envoy.stop()


@pytest.fixture
def watch(request: pytest.FixtureRequest, own_gateways: list[Gateway]) -> Iterator[Callable[[Gateway], None]]:
    """Have a gateway's counters checked when the test ends, and its logs shown if it fails."""
    watched: list[tuple[Gateway, dict[str, int]]] = []
    request.node.stash[_USED] = []

    def add(gateway: Gateway) -> None:
        watched.append((gateway, {name: gateway.counter(name) for name in CLEAN}))
        request.node.stash[_USED].append(gateway)

    yield add
    if request.node.get_closest_marker("failure") is None:
        for gateway, before in watched:
            after = {name: gateway.counter(name) for name in CLEAN}
            assert before == after, "Envoy counted failures of the sidecar"


@pytest.fixture
def gateway(standard: Gateway, watch: Callable[[Gateway], None]) -> Gateway:
    """The shared gateway, with nothing left over from the test before."""
    standard.pools.clear()
    watch(standard)
    return standard


@pytest.fixture
def make_gateway(
    own_gateways: list[Gateway], watch: Callable[[Gateway], None], tmp_path: Path, pools: Pools
) -> Callable[..., Gateway]:
    """Gateways of a test's own: `make_gateway(sidecars, **changes)`; see `start_gateway`."""
    pools.clear()

    def make(sidecars: list[Sidecar], **changes: Any) -> Gateway:
        folder = tmp_path / f"envoy-{len(own_gateways)}"
        folder.mkdir()
        gateway = start_gateway(folder, sidecars, pools, **changes)
        own_gateways.append(gateway)
        watch(gateway)
        return gateway

    return make


@pytest.fixture
def make_sidecar(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Sidecars of a test's own, with settings as in `start_sidecar`."""
    running: list[Sidecar] = []

    def make(**settings: Any) -> Sidecar:
        running.append(start_sidecar(tmp_path, f"sidecar-{len(running)}", **settings))
        return running[-1]

    yield make
    for sidecar in running:
        sidecar.stop()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the shared gateway."""
    async with aiohttp.ClientSession(gateway.url, auto_decompress=False) as session:
        yield session

"""How busy the pools are, as they say themselves."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping

import pytest

from semroute_extproc.config.models import Pool
from semroute_extproc.events import Scraped
from semroute_extproc.state import pool_metrics as load
from semroute_extproc.state.pool_metrics import gauge_names, read_page
from semroute_extproc.telemetry.admin import AdminServer, text
from semroute_extproc.telemetry.prom import PrometheusSink

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
# TYPE vllm:num_requests_running_created gauge
vllm:num_requests_running_created{engine="0",model_name="m"} 1.7e9
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""


def test_engines_are_summed_and_the_fullest_cache_counts() -> None:
    assert read_page(PAGE) == {"running": 7.0, "kv_cache_usage": 0.5}


def test_a_gauge_that_is_not_there_is_unknown_and_not_zero() -> None:
    assert "waiting" not in read_page(PAGE)
    assert read_page("") == {}


def test_a_pool_may_call_its_gauges_otherwise_and_the_first_name_found_counts() -> None:
    page = "# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 5.0\nold_queue 2.0\nnew_queue 3.0\n"
    pool = Pool.model_validate(
        {
            "cluster": "c",
            "model": "m",
            "gauges": {"running": "sglang:num_running_reqs", "waiting": ["new_queue", "old_queue"]},
        }
    )
    assert read_page(page, gauge_names(pool)) == {"running": 5.0, "waiting": 3.0}
    assert read_page("# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc 0.5\n") == {
        "kv_cache_usage": 0.5
    }


def test_a_line_that_is_not_a_metric_is_refused() -> None:
    with pytest.raises(ValueError):
        read_page("vllm:num_requests_running{ not metrics")


async def test_pools_are_looked_at_again_and_a_dead_one_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "INTERVAL_SECONDS", 0.02)
    server = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE)})
    told: dict[str, Mapping[str, float]] = {}
    pools = {
        "up": Pool(cluster="c", model="a", metrics=f"http://127.0.0.1:{server.port}/metrics"),
        "down": Pool(cluster="c", model="b", metrics="http://127.0.0.1:9/metrics"),
        "silent": Pool(cluster="c", model="d"),
    }
    failed: list[str] = []
    task = asyncio.create_task(load.scrape(lambda: pools, told.__setitem__, failed.append))
    while "up" not in told:
        await asyncio.sleep(0.01)
    assert set(failed) == {"down"}
    assert told == {"up": {"running": 7.0, "kv_cache_usage": 0.5}, "down": {}}
    await asyncio.to_thread(server.close)
    while told["up"]:
        await asyncio.sleep(0.01)
    task.cancel()


def test_the_load_is_exported_and_disappears_when_it_is_unknown() -> None:
    sink = PrometheusSink()
    sink.handle(Scraped("small", {"running": 2.0}, failed=False))
    assert b'semroute_pool_load{gauge="running",pool="small"} 2.0' in sink.exposition()
    sink.handle(Scraped("small", {}, failed=True))
    assert b"semroute_pool_load{" not in sink.exposition()


def test_a_page_full_of_other_metrics_costs_next_to_nothing() -> None:
    others = "".join(f'vllm:h_bucket{{le="{n}.0",model_name="m"}} {n}.0\n' for n in range(20_000))
    started = time.perf_counter()
    assert read_page(others + PAGE) == read_page(PAGE)
    assert time.perf_counter() - started < 0.1


async def test_a_page_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TIMEOUT_SECONDS", 0.2)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"#")
            await asyncio.sleep(0.05)

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(cluster="c", model="m", metrics=f"http://127.0.0.1:{port}/")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.to_thread(load._load, pool), 5)
    server.close()


async def test_a_pool_is_asked_directly_whatever_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The library keeps the environment of its first use.
    monkeypatch.setattr(urllib.request, "_opener", None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE)})
    pool = Pool(cluster="c", model="m", metrics=f"http://127.0.0.1:{server.port}/metrics")
    assert await asyncio.to_thread(load._load, pool) == read_page(PAGE)
    await asyncio.to_thread(server.close)


async def test_a_page_elsewhere_is_not_the_pools() -> None:
    elsewhere = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE)})

    async def redirect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = f"http://127.0.0.1:{elsewhere.port}/metrics"
        writer.write(f"HTTP/1.0 302 Found\r\nLocation: {place}\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(cluster="c", model="m", metrics=f"http://127.0.0.1:{port}/metrics")
    with pytest.raises(OSError, match="302"):
        await asyncio.to_thread(load._load, pool)
    server.close()
    await asyncio.to_thread(elsewhere.close)


async def test_a_page_whose_name_does_not_resolve_holds_no_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking a name up has no timeout of ours."""
    monkeypatch.setattr(load, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(load, "LOOK_SECONDS_MAX", 0.1)
    resolved, asked = threading.Event(), Counter[str]()

    def fetch(url: str) -> str:
        asked[url] += 1
        if "nowhere" in url:
            resolved.wait(10)
        return PAGE

    monkeypatch.setattr(load, "_fetch", fetch)
    pools = {
        name: Pool(cluster="c", model=name, metrics=f"http://{name}/metrics") for name in ("up", "nowhere")
    }
    told: list[tuple[str, Mapping[str, float]]] = []
    task = asyncio.create_task(load.scrape(lambda: pools, lambda *each: told.append(each)))
    async with asyncio.timeout(5):
        while told.count(("up", read_page(PAGE))) < 5:
            await asyncio.sleep(0.01)
        assert told.count(("nowhere", {})) >= 4
        assert asked["http://nowhere/metrics"] == 1, "it is not asked again while it is asked"
        resolved.set()
        while ("nowhere", read_page(PAGE)) not in told:
            await asyncio.sleep(0.01)
    task.cancel()


async def test_the_load_of_a_pool_that_is_gone_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(load, "_fetch", lambda _: PAGE)
    pools = {"up": Pool(cluster="c", model="a", metrics="http://pool/metrics")}
    told: dict[str, Mapping[str, float]] = {}
    task = asyncio.create_task(load.scrape(lambda: pools, told.__setitem__))
    while "up" not in told:
        await asyncio.sleep(0.01)
    pools.clear()
    while told["up"]:
        await asyncio.sleep(0.01)
    task.cancel()

"""How busy the pools are, as they say themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest

from semroute_extproc.events import Event, Scraped
from semroute_extproc.settings.pools import Pool
from semroute_extproc.state import pool_metrics
from semroute_extproc.state.pool_metrics import Load, fetch, read_page, scrape
from semroute_extproc.telemetry.admin import AdminServer, text
from semroute_extproc.telemetry.prom import PrometheusSink

PAGE = b"""\
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
    assert read_page(b"") == {}


def test_a_pool_may_call_its_gauges_otherwise_and_the_first_name_found_counts() -> None:
    page = (
        b"# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs 5.0\nold_queue 2.0\nnew_queue 3.0\n"
    )
    pool = Pool.model_validate(
        {
            "cluster": "c",
            "model": "m",
            "gauges": {"running": "sglang:num_running_reqs", "waiting": ["new_queue", "old_queue"]},
        }
    )
    assert read_page(page, pool.gauges) == {"running": 5.0, "waiting": 3.0}
    assert read_page(b"# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc 0.5\n") == {
        "kv_cache_usage": 0.5
    }


def test_a_line_that_is_not_a_metric_is_refused() -> None:
    with pytest.raises(ValueError):
        read_page(b"vllm:num_requests_running{ not metrics")


def test_the_load_is_exported_and_disappears_when_it_is_unknown() -> None:
    sink = PrometheusSink()
    sink.handle(Scraped("small", {"running": 2.0}, failed=False))
    assert b'semroute_pool_load{gauge="running",pool="small"} 2.0' in sink.exposition()
    sink.handle(Scraped("small", {}, failed=True))
    assert b"semroute_pool_load{" not in sink.exposition()


def test_a_page_full_of_other_metrics_costs_next_to_nothing() -> None:
    others = b"".join(b'vllm:h_bucket{le="%d.0",model_name="m"} %d.0\n' % (n, n) for n in range(20_000))
    started = time.process_time()
    assert read_page(others + PAGE) == read_page(PAGE)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    "line", [b"\n", b"ab\n", b"\xff", b"vllm:num_requests_running 0\n", b"vllm:num_requests_running{a="]
)
def test_a_hostile_page_costs_little_time_and_memory(line: bytes) -> None:
    """The event loop waits for each part: splitting it into lines took 0.05 s, and reading them 12 s."""
    page = PAGE + line * (pool_metrics.PAGE_BYTES_MAX // len(line))
    started = time.process_time()
    with suppress(ValueError):
        assert read_page(page)["kv_cache_usage"] == 0.5
    assert time.process_time() - started < 0.5


def test_a_number_that_no_float_holds_is_refused() -> None:
    """It ended every scrape of our own metrics."""
    with pytest.raises(OverflowError):
        read_page(b"vllm:num_requests_running 1" + b"0" * 400 + b"\n")


@asynccontextmanager
async def serving(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that sends what it is told to; its address."""

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"
    server.close()


async def test_a_page_that_comes_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_metrics, "TIMEOUT_SECONDS", 0.2)

    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"#")
            await asyncio.sleep(0.05)

    async with serving(drip) as url:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(fetch, url, {}), 5)


async def test_a_pool_is_asked_directly_whatever_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE.decode())})
    found = await asyncio.to_thread(fetch, f"http://127.0.0.1:{server.port}/metrics", {})
    assert found == read_page(PAGE)
    await asyncio.to_thread(server.close)


async def test_a_page_elsewhere_is_not_the_pools() -> None:
    elsewhere = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE.decode())})

    async def redirect(writer: asyncio.StreamWriter) -> None:
        place = f"http://127.0.0.1:{elsewhere.port}/metrics"
        writer.write(f"HTTP/1.0 302 Found\r\nLocation: {place}\r\n\r\n".encode())

    async with serving(redirect) as url:
        with pytest.raises(httpx2.HTTPStatusError, match="302"):
            await asyncio.to_thread(fetch, url, {})
    await asyncio.to_thread(elsewhere.close)


class Told(list[Scraped]):
    """The events of a scrape."""

    def emit(self, event: Event) -> None:
        assert isinstance(event, Scraped)
        self.append(event)

    def last(self, pool: str) -> Scraped | None:
        return next((event for event in reversed(self) if event.pool == pool), None)


@asynccontextmanager
async def scraping(
    pools: dict[str, Pool], read: Callable[[str, object], Load] = fetch, seconds_max: float = 2.0
) -> AsyncIterator[Told]:
    told = Told()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool_metrics, "INTERVAL_SECONDS", 0.01)
        patched.setattr(pool_metrics, "PROBE_SECONDS_MAX", seconds_max)
        patched.setattr(pool_metrics, "fetch", read)
        task = asyncio.create_task(scrape(lambda: pools, told.emit))
        async with asyncio.timeout(10):
            yield told
        task.cancel()


def pool(url: str | None) -> Pool:
    return Pool(cluster="c", model="m", metrics=url)


async def test_pools_are_looked_at_again_and_a_dead_one_is_unknown() -> None:
    server = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE.decode())})
    pools = {
        "up": pool(f"http://127.0.0.1:{server.port}/metrics"),
        "down": pool("http://127.0.0.1:9/metrics"),
        "silent": pool(None),
    }
    async with scraping(pools) as told:
        while not told.last("up"):
            await asyncio.sleep(0.01)
        assert told.last("up") == Scraped("up", {"running": 7.0, "kv_cache_usage": 0.5}, failed=False)
        assert told.last("down") == Scraped("down", {}, failed=True)
        assert told.last("silent") is None
        await asyncio.to_thread(server.close)
        while told.last("up") != Scraped("up", {}, failed=True):
            await asyncio.sleep(0.01)


async def test_a_page_whose_name_does_not_resolve_holds_no_other_up() -> None:
    """Looking a name up has no timeout of ours."""
    resolved, asked = threading.Event(), Counter[str]()

    def read(url: str, _: object) -> Load:
        asked[url] += 1
        if "nowhere" in url:
            resolved.wait(10)
        return read_page(PAGE)

    pools = {name: pool(f"http://{name}/metrics") for name in ("up", "nowhere")}
    async with scraping(pools, read, 0.1) as told:
        while told.count(Scraped("up", read_page(PAGE), failed=False)) < 5:
            await asyncio.sleep(0.01)
        assert told.count(Scraped("nowhere", {}, failed=True)) >= 4
        assert asked["http://nowhere/metrics"] == 1, "it is not asked again while it is asked"
        resolved.set()
        while told.last("nowhere") != Scraped("nowhere", read_page(PAGE), failed=False):
            await asyncio.sleep(0.01)


async def test_the_load_of_a_pool_that_is_gone_is_unknown() -> None:
    pools = {"up": pool("http://pool/metrics")}
    async with scraping(pools, lambda *_: read_page(PAGE)) as told:
        while not told.last("up"):
            await asyncio.sleep(0.01)
        pools.clear()
        while told.last("up") != Scraped("up", {}, failed=False):
            await asyncio.sleep(0.01)

"""The load of the pools: vLLM's own gauges, read from each pool's metrics page."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.events import Emit, Scraped
from semroute_extproc.settings.base import POOLS_MAX
from semroute_extproc.settings.pools import Gauge, Pool

if TYPE_CHECKING:
    import httpx2

INTERVAL_SECONDS = 2.0  # Pause between two rounds.
TIMEOUT_SECONDS = 1.0  # Timeout of a page.
PROBE_SECONDS_MAX = 2 * TIMEOUT_SECONDS  # Longest wait for a pool in a round: name lookup has no timeout.
PAGE_BYTES_MAX = 8 * 1024 * 1024  # Only this much of a page is read.
LINES_MAX, LINE_BYTES_MAX = 256, 1_024  # Lines of a metric that are parsed, and bytes of each.

# Our name of a gauge to vLLM's names; the first one on the page is used, the last is of vLLM before 0.10.
GAUGES: Mapping[Gauge, Sequence[str]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
Load = Mapping[str, float]  # Gauge to value; a missing gauge is unknown, never zero.

logger = structlog.get_logger("semroute.load")


def read_page(page: bytes, own: Mapping[Gauge, Sequence[str]] = {}) -> Load:
    """The load in one metrics page; `own` maps gauges to metric names that differ from vLLM's.

    Values of a server's engines are summed, but of the cache usage the maximum is taken. Raises
    ValueError if a line with one of the metrics cannot be parsed, and OverflowError for a huge number.
    """
    gauges = {**GAUGES, **own}
    wanted, page = {f"\n{name}".encode() for names in gauges.values() for name in names}, b"\n" + page
    # Only these lines: the parser takes 0.5 µs per byte, and splitting a hostile page holds the event loop.
    found = (start + rest[:LINE_BYTES_MAX] for start in wanted for rest in page.split(start, LINES_MAX)[1:])
    ours = b"\n".join(line.split(b"\n", 2)[1] for line in found).decode("utf-8", "replace") + "\n"
    samples = [each for family in text_string_to_metric_families(ours) for each in family.samples]
    load: dict[str, float] = {}
    for gauge, names in gauges.items():
        known = ([float(each.value) for each in samples if each.name == name] for name in names)
        if values := next(filter(None, known), None):
            load[gauge] = max(values) if gauge == "kv_cache_usage" else sum(values)
    return load


@cache
def _client() -> "httpx2.Client":
    """A client that ignores proxies in the environment and follows no redirects."""
    import httpx2  # Imported only if used, because it takes 60 ms.

    return httpx2.Client(trust_env=False, headers={"accept-encoding": "identity"})


def read(url: str, seconds: float = TIMEOUT_SECONDS, method: str = "GET", **sent: Any) -> bytes:
    """At most `PAGE_BYTES_MAX` of the page at `url`; raises an exception if it cannot be read in time."""
    deadline = monotonic() + seconds
    page = bytearray()
    with _client().stream(method, url, timeout=seconds, **sent) as response:
        response.raise_for_status()
        for chunk in response.iter_raw():
            page += chunk
            if monotonic() > deadline:
                # The client's own timeout restarts at every read.
                raise TimeoutError(f"no page within {seconds} s")
            if len(page) >= PAGE_BYTES_MAX:
                break
    return bytes(page)


def fetch(url: str, own: Mapping[Gauge, Sequence[str]]) -> Load:
    """The load in the page at `url`; raises what `read` and `read_page` raise."""
    return read_page(read(url), own)


async def scrape(pools: Callable[[], Mapping[str, Pool]], emit: Emit) -> None:
    """Scrape every pool that has a metrics page, until cancelled; emit `Scraped` for each.

    `pools` is called in each round, so that a reload takes effect. An unreachable pool has an empty load,
    and a change is logged. A slow pool does not delay the others and has at most one scrape at a time.
    """
    reachable: dict[str, bool] = {}
    active: dict[tuple[str, str], asyncio.Future[Load]] = {}
    executor = ThreadPoolExecutor(POOLS_MAX, "metrics")
    start = asyncio.get_running_loop().run_in_executor
    try:
        while True:
            current = pools()
            wanted = {name: (name, pool.metrics) for name, pool in current.items() if pool.metrics}
            keys = (key for key in wanted.values() if key not in active)
            new = {key: start(executor, fetch, key[1], current[key[0]].gauges) for key in keys}
            active |= new
            if new:
                await asyncio.wait(new.values(), timeout=PROBE_SECONDS_MAX)
            done = {key: active.pop(key) for key, future in list(active.items()) if future.done()}
            loads = {key: future.result() for key, future in done.items() if not future.exception()}
            for name, key in wanted.items():
                emit(Scraped(name, loads.get(key, {}), failed=key not in loads))
                if reachable.get(name, True) != (key in loads):
                    logger.warning("pool.metrics", pool=name, reachable=key in loads)
            for name in reachable.keys() - wanted.keys():
                emit(Scraped(name, {}, failed=False))
            reachable = {name: key in loads for name, key in wanted.items()}
            await asyncio.sleep(INTERVAL_SECONDS)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)

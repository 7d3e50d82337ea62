"""How busy the pools are: vLLM's own gauges, read from each pool's metrics page.

A gauge that a page does not have, or a page that cannot be had, is unknown and never zero.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping
from time import monotonic

import structlog
from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.config import Pool

INTERVAL_SECONDS = 2.0
"""Pause between two looks at a pool."""

TIMEOUT_SECONDS = 1.0
"""How long a page may take."""

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Most of a page that is read."""

CHUNK_BYTES = 65_536
"""Read at a time; the clock is looked at in between."""

GAUGES: Mapping[str, str] = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
}
"""vLLM's name of a gauge to ours. Engines of one server are summed, of the cache use the largest counts."""

Load = Mapping[str, float]
"""Gauge to value; a gauge that is not there is unknown."""

logger = structlog.get_logger("semroute.load")


def read_page(text: str) -> Load:
    """The load in one metrics page; raises ValueError if a line of ours in it cannot be read."""
    load: dict[str, float] = {}
    # The parser takes half a microsecond a byte, and a server has a hundred kilobytes of histograms.
    ours = "\n".join(line for line in text.splitlines() if any(name in line for name in GAUGES))
    for family in text_string_to_metric_families(ours + "\n"):
        gauge = GAUGES.get(family.name)
        if gauge is None:
            continue
        values = [sample.value for sample in family.samples if sample.name == family.name]
        if values:
            load[gauge] = max(values) if gauge == "kv_cache_usage" else sum(values)
    return load


async def scrape(pools: Callable[[], Mapping[str, Pool]], tell: Callable[[str, Load], None]) -> None:
    """Look at every pool that names a metrics page, again and again, and tell its load.

    `pools` is asked anew each round, so a reload takes effect. A pool that cannot be reached is told
    as an empty load, and logged when that changes.
    """
    reachable: dict[str, bool] = {}
    while True:
        urls = {name: pool.metrics for name, pool in pools().items() if pool.metrics}
        loads = await asyncio.gather(*(_load(url) for url in urls.values()), return_exceptions=True)
        for name, load in zip(urls, loads, strict=True):
            failed = isinstance(load, BaseException)
            tell(name, {} if isinstance(load, BaseException) else load)
            if reachable.get(name, True) == failed:
                logger.warning("pool.metrics", pool=name, reachable=not failed)
            reachable[name] = not failed
        for name in reachable.keys() - urls.keys():
            tell(name, {})
            del reachable[name]
        await asyncio.sleep(INTERVAL_SECONDS)


async def _load(url: str) -> Load:
    return await asyncio.to_thread(lambda: read_page(_fetch(url)))


def _fetch(url: str) -> str:
    """The page; raises OSError, TimeoutError among them, if it does not come in time."""
    deadline = monotonic() + TIMEOUT_SECONDS
    page = bytearray()
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - http(s) by the schema
        while len(page) < PAGE_BYTES_MAX and (chunk := response.read1(CHUNK_BYTES)):
            page += chunk
            if monotonic() > deadline:
                # The socket's own timeout starts anew with every byte.
                raise TimeoutError(f"no page within {TIMEOUT_SECONDS} s")
    return page.decode("utf-8", "replace")

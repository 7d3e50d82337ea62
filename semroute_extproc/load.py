"""How busy the pools are: vLLM's own gauges, read from each pool's metrics page.

A gauge that a page does not have, or a page that cannot be had, is unknown and never zero.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping

import structlog
from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.config import Pool

INTERVAL_SECONDS = 2.0
"""Pause between two looks at a pool."""

TIMEOUT_SECONDS = 1.0
"""How long a page may take."""

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Most of a page that is read."""

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
    """The load in one metrics page; raises ValueError if it is not one."""
    load: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
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
        await asyncio.sleep(INTERVAL_SECONDS)


async def _load(url: str) -> Load:
    return read_page(await asyncio.to_thread(_fetch, url))


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - http(s) by the schema
        return str(response.read(PAGE_BYTES_MAX), "utf-8", "replace")

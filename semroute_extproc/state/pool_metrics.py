"""How busy the pools are: vLLM's own gauges, read from each pool's metrics page.

A gauge that a page does not have, or a page that cannot be had, is unknown and never zero.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import structlog
from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.settings.base import POOLS_MAX
from semroute_extproc.settings.pools import Pool

INTERVAL_SECONDS = 2.0
"""Pause between two looks at a pool."""

TIMEOUT_SECONDS = 1.0
"""How long a page may take."""

LOOK_SECONDS_MAX = 2 * TIMEOUT_SECONDS
"""How long a round waits for one pool: a name that does not resolve has no timeout of ours."""

PAGE_BYTES_MAX = 8 * 1024 * 1024
"""Most of a page that is read."""

CHUNK_BYTES = 65_536
"""Read at a time; the clock is looked at in between."""

GAUGES: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    # The second name is that of vLLM before 0.10.
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
"""Our name of a gauge to vLLM's names of it, the first found counts.

Engines of one server are summed, of the cache use the largest counts."""

Load = Mapping[str, float]
"""Gauge to value; a gauge that is not there is unknown."""

Looks = dict[tuple[str, str], asyncio.Future[Load]]
"""Looks that are under way, by pool and page."""

logger = structlog.get_logger("semroute.load")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """None: the redirect is the error that any other status is."""


# As a judge is asked: a pool is where its address says, not behind the environment's proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


def read_page(text: str, names: Mapping[str, Sequence[str]] = GAUGES) -> Load:
    """The load in one metrics page; raises ValueError if a line of ours in it cannot be read.

    `names` is gauge to the metrics that may stand for it, the first found counts.
    """
    wanted = {name for several in names.values() for name in several}
    # The parser takes half a microsecond a byte, and a server has a hundred kilobytes of histograms.
    ours = "\n".join(line for line in text.splitlines() if any(name in line for name in wanted))
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(ours + "\n"):
        # A family of a counter is named without its suffix; a gauge's sample has the family's name.
        for sample in family.samples:
            if sample.name in wanted:
                found.setdefault(sample.name, []).append(sample.value)
    load: dict[str, float] = {}
    for gauge, several in names.items():
        values = next((found[name] for name in several if name in found), None)
        if values is not None:
            load[gauge] = max(values) if gauge == "kv_cache_usage" else sum(values)
    return load


def gauge_names(pool: Pool) -> Mapping[str, Sequence[str]]:
    """What a pool calls its gauges."""
    return {**GAUGES, **{str(gauge): names for gauge, names in pool.gauges.items()}}


async def scrape(
    pools: Callable[[], Mapping[str, Pool]],
    tell: Callable[[str, Load], None],
    failed: Callable[[str], None] = lambda _: None,
) -> None:
    """Look at every pool that names a metrics page, again and again, and tell its load.

    `pools` is asked anew each round, so a reload takes effect. A pool that cannot be reached is told
    as an empty load and as `failed`, and logged when that changes. It holds no other up, and is not
    looked at again before the last look at it has come to an end.
    """
    reachable: dict[str, bool] = {}
    under_way: Looks = {}
    executor = ThreadPoolExecutor(POOLS_MAX, "metrics")
    try:
        while True:
            await _round(pools(), tell, failed, reachable, under_way, executor)
            await asyncio.sleep(INTERVAL_SECONDS)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


async def _round(
    pools: Mapping[str, Pool],
    tell: Callable[[str, Load], None],
    failed: Callable[[str], None],
    reachable: dict[str, bool],
    under_way: Looks,
    executor: ThreadPoolExecutor,
) -> None:
    """Look at every pool once."""
    looked = {name: (name, pool.metrics) for name, pool in pools.items() if pool.metrics}
    fresh = {name: key for name, key in looked.items() if key not in under_way}
    for name, key in fresh.items():
        under_way[key] = asyncio.get_running_loop().run_in_executor(executor, _load, pools[name])
    if fresh:
        await asyncio.wait([under_way[key] for key in fresh.values()], timeout=LOOK_SECONDS_MAX)
    done = {key: under_way.pop(key) for key, look in list(under_way.items()) if look.done()}
    loads = {key: look.result() for key, look in done.items() if look.exception() is None}
    for name, key in looked.items():
        missing = key not in loads
        if missing:
            failed(name)
        tell(name, loads.get(key, {}))
        if reachable.get(name, True) == missing:
            logger.warning("pool.metrics", pool=name, reachable=not missing)
        reachable[name] = not missing
    for name in reachable.keys() - looked.keys():
        tell(name, {})
        del reachable[name]


def _load(pool: Pool) -> Load:
    assert pool.metrics is not None
    return read_page(_fetch(pool.metrics), gauge_names(pool))


def _fetch(url: str) -> str:
    """The page; raises OSError, TimeoutError among them, if it is not there or does not come in time."""
    deadline = monotonic() + TIMEOUT_SECONDS
    page = bytearray()
    with _OPENER.open(url, timeout=TIMEOUT_SECONDS) as response:
        while len(page) < PAGE_BYTES_MAX and (chunk := response.read1(CHUNK_BYTES)):
            page += chunk
            if monotonic() > deadline:
                # The socket's own timeout starts anew with every byte.
                raise TimeoutError(f"no page within {TIMEOUT_SECONDS} s")
    return page.decode("utf-8", "replace")

"""How busy the pools are, as they say themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from semroute_extproc import load
from semroute_extproc.admin import AdminServer, text
from semroute_extproc.config import Pool
from semroute_extproc.load import read_page
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


def test_a_page_that_is_not_metrics_is_refused() -> None:
    with pytest.raises(ValueError):
        read_page("<html>\n{ not metrics")


async def test_pools_are_looked_at_again_and_a_dead_one_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "INTERVAL_SECONDS", 0.02)
    server = AdminServer("127.0.0.1:0", {"/metrics": lambda: text(200, PAGE)})
    told: dict[str, Mapping[str, float]] = {}
    pools = {
        "up": Pool(cluster="c", model="a", metrics=f"http://127.0.0.1:{server.port}/metrics"),
        "down": Pool(cluster="c", model="b", metrics="http://127.0.0.1:9/metrics"),
        "silent": Pool(cluster="c", model="d"),
    }
    task = asyncio.create_task(load.scrape(lambda: pools, told.__setitem__))
    while "up" not in told:
        await asyncio.sleep(0.01)
    assert told == {"up": {"running": 7.0, "kv_cache_usage": 0.5}, "down": {}}
    await asyncio.to_thread(server.close)
    while told["up"]:
        await asyncio.sleep(0.01)
    task.cancel()


def test_the_load_is_exported_and_disappears_when_it_is_unknown() -> None:
    sink = PrometheusSink()
    sink.set_load("small", {"running": 2.0})
    assert b'semroute_pool_load{gauge="running",pool="small"} 2.0' in sink.exposition()
    sink.set_load("small", {})
    assert b"semroute_pool_load{" not in sink.exposition()

"""A real Envoy and a real sidecar have every metric of the shipped dashboard."""

from __future__ import annotations

import re

import aiohttp
from dashboard import EXPRESSIONS, metrics
from gateway import Gateway, chat
from semroute_demo.process import HTTP

WITHOUT_TRAFFIC = {"semroute_budget_realized", "semroute_budget_target", "semroute_pool_load"}
"""Gauges that exist only with a budget or a pool's metrics page, which this gateway does not have."""


async def test_every_metric_of_the_dashboard_is_on_a_page(
    gateway: Gateway, client: aiohttp.ClientSession
) -> None:
    async with client.post("/v1/chat/completions", json=chat(model="auto")) as response:
        assert response.status == 200
    async with client.post("/v1/chat/completions", json=chat(model="auto-weak")) as response:
        assert response.status == 200
    envoy = HTTP.get(f"http://{gateway.envoy.admin}/stats/prometheus").text
    pages = envoy + gateway.sidecars[0].read_admin("/metrics")[1]
    declared = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\w+)", pages, re.M)}
    wanted = {name for expression in EXPRESSIONS.values() for name, _ in metrics(expression)}
    missing = {name for name in wanted if name.removesuffix("_total").removesuffix("_bucket") not in declared}
    assert missing <= WITHOUT_TRAFFIC, "declared without a sample" if missing else ""
    assert not {name for name in missing if name.startswith("envoy_")}

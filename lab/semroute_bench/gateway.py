"""The whole path through Envoy, against Envoy without a processor and with ones that do nothing."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import aiohttp
from semroute_demo.envoy import Envoy, Variant, connection_manager, shipped, variant
from semroute_demo.process import POLL_SECONDS, Process, ProcessError, free_port

from semroute_bench import load
from semroute_bench.direct import NAMED, ROUTED, UNHURRIED, default_model
from semroute_bench.load import quantiles
from semroute_bench.servers import READY_SECONDS_MAX, Measured, floor

WARM_UP = 50
"""Requests to each path that are not counted."""

PATH = "/v1/chat/completions"


async def measure(requests: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of `requests` on each path, one at a time over kept connections, the paths in turn."""
    port = free_port()
    pool = _pool(folder, port)
    sidecar = Measured(folder / "gateway", **UNHURRIED)
    settings = Variant(
        sockets=sidecar.sockets,
        pools={"vllm-small": ("127.0.0.1", port), "vllm-large": ("127.0.0.1", port)},
    )
    nothing, passes = floor(folder), floor(folder, "passes")
    for name in ("with", "without", "nothing", "pass"):
        (folder / name).mkdir()
    with_it = Envoy(variant(shipped(), settings), folder / "with")
    plain = variant(shipped(), settings)
    filters = connection_manager(plain)["http_filters"]
    filters[:] = [each for each in filters if each["name"] != "envoy.filters.http.ext_proc"]
    without = Envoy(plain, folder / "without")
    idle, reading = (
        Envoy(variant(shipped(), replace(settings, sockets=[str(folder / socket)])), folder / name)
        for socket, name in (("floor.sock", "nothing"), ("passes.sock", "pass"))
    )
    envoys = (with_it, without, idle, reading)
    try:
        pool.start(lambda: _listening(port), 20)
        for envoy in envoys:
            envoy.start()
        await asyncio.to_thread(with_it.wait_for_sidecar)
        for envoy in (idle, reading):
            await asyncio.to_thread(_wait_for_health, envoy)
        times = await _in_turn(requests, *(envoy.url for envoy in envoys))
        errors = with_it.stats("ext_proc.*(failure_mode_allowed|spurious_msgs_received|message_timeouts)")
        return {
            "requests": requests,
            "ms": {name: quantiles(values) for name, values in times.items()},
            "errors counted by Envoy": sum(errors.values()),
        }
    finally:
        for process in (*envoys, sidecar, nothing, passes, pool):
            process.stop()


async def _in_turn(
    requests: int, with_it: str, without: str, idle: str, reading: str
) -> dict[str, list[float]]:
    """Milliseconds of each request on each path, by its name; after their number the Envoys' addresses."""
    model = default_model()
    once = model.alone([model.framer.frame(load.PROMPT)])

    async def bare() -> float:
        started = perf_counter()
        once()
        return (perf_counter() - started) * 1e3

    times: dict[str, list[float]] = {}
    async with aiohttp.ClientSession() as session:
        paths: dict[str, Callable[[], Awaitable[float]]] = {
            "bare session": bare,
            "Envoy alone": lambda: post(session, without + PATH, load.chat(NAMED)),
            "do-nothing processor": lambda: post(session, idle + PATH, load.chat(NAMED)),
            "do-nothing processor with the pass": lambda: post(session, reading + PATH, load.chat(ROUTED)),
            "named model": lambda: post(session, with_it + PATH, load.chat(NAMED)),
            "routed model": lambda: post(session, with_it + PATH, load.chat(ROUTED)),
        }
        for number in range(WARM_UP + requests):
            for name, call in paths.items():
                took = await call()
                if number >= WARM_UP:
                    times.setdefault(name, []).append(took)
    return times


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """Milliseconds for one request; raises unless it is answered with 200."""
    started = perf_counter()
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}")
    return (perf_counter() - started) * 1e3


def _pool(folder: Path, port: int) -> Process:
    command = [sys.executable, "-m", "semroute_demo.pool", "--port", str(port)]
    command += ["--first-token-ms", "0", "--token-ms", "0"]
    for name in (NAMED, "deepseek-ai/DeepSeek-V3.2", ROUTED):
        command += ["--model", name]
    return Process("pool", command, folder / "pool.log")


def _wait_for_health(envoy: Envoy) -> None:
    """Until Envoy finds its processor well; ProcessError if it does not."""
    deadline = monotonic() + READY_SECONDS_MAX
    while not envoy.healthy("semroute"):
        if monotonic() > deadline:
            raise ProcessError(f"Envoy does not reach the do-nothing processor: {envoy.process.log_tail()}")
        sleep(POLL_SECONDS)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

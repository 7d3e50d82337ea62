"""The whole path through Envoy, against Envoy without a processor and with do-nothing processors."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import aiohttp
from semroute_demo.envoy import Envoy, Variant, connection_manager, shipped, variant
from semroute_demo.process import HTTP, Process, free_port, wait_until

from semroute_bench import load
from semroute_bench.floor import READY_SECONDS_MAX, DoNothing
from semroute_bench.load import NAMED, ROUTED
from semroute_bench.samples import Samples, Say, Size, quantiles
from semroute_bench.sidecar import UNHURRIED, Bare, Measured, default_model

WARM_UP = 50
"""Requests to each path that are not counted."""

PATH = "/v1/chat/completions"


async def measure(size: Size, folder: Path, say: Say) -> dict[str, object]:
    """Milliseconds on each path, one request at a time over kept connections, the paths in turn."""
    port = free_port()
    command = [sys.executable, "-m", "semroute_demo.pool", "--port", str(port)]
    command += ["--first-token-ms", "0", "--token-ms", "0"]
    for name in (NAMED, "deepseek-ai/DeepSeek-V3.2", ROUTED):
        command += ["--model", name]
    pool = Process("pool", command, folder / "pool.log")
    places = {"vllm-small": ("127.0.0.1", port), "vllm-large": ("127.0.0.1", port)}
    with_sidecar, alone, nothing, passes = (folder / name for name in ("with", "alone", "nothing", "passes"))
    async with AsyncExitStack() as exits:
        exits.callback(pool.stop)
        pool.start(lambda: listening(port), READY_SECONDS_MAX)
        envoys: dict[Path, Envoy] = {}
        for place, server in (
            (with_sidecar, Measured(folder / "gateway", **UNHURRIED)),
            (alone, None),
            (nothing, DoNothing(folder)),
            (passes, DoNothing(folder, "passes")),
        ):
            place.mkdir()
            changes = Variant([], places)
            if server is not None:
                exits.callback(server.stop)
                changes = replace(changes, sockets=[str(socket) for socket in server.sockets])
            bootstrap = variant(shipped(), changes)
            if server is None:
                filters = connection_manager(bootstrap)["http_filters"]
                filters[:] = [each for each in filters if each["name"] != "envoy.filters.http.ext_proc"]
            envoys[place] = envoy = Envoy(bootstrap, place)
            exits.callback(envoy.stop)
            envoy.start()
        await asyncio.to_thread(envoys[with_sidecar].wait_for_sidecar)
        for place in (nothing, passes):
            healthy = envoys[place].healthy
            what = "Envoy to reach the do-nothing processor"
            await asyncio.to_thread(wait_until, lambda each=healthy: each("semroute"), READY_SECONDS_MAX, what)
        session = await exits.enter_async_context(aiohttp.ClientSession())
        model = default_model()
        once = Bare(model, load.PROMPT).once
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "bare session": lambda: _in_loop(once),
            "Envoy alone": lambda: _post(session, envoys[alone], NAMED),
            "do-nothing processor": lambda: _post(session, envoys[nothing], NAMED),
            "do-nothing processor with the pass": lambda: _post(session, envoys[passes], ROUTED),
            "named model": lambda: _post(session, envoys[with_sidecar], NAMED),
            "routed model": lambda: _post(session, envoys[with_sidecar], ROUTED),
        }
        samples = Samples()
        for number in range(WARM_UP + size.gateway_requests):
            for name, call in calls.items():
                started = perf_counter()
                await call()
                if number >= WARM_UP:
                    samples.add(name, (perf_counter() - started) * 1e3)
        counters = "ext_proc.*(failure_mode_allowed|spurious_msgs_received|message_timeouts)"
        errors = envoys[with_sidecar].stats(counters)
        return {
            "requests": size.gateway_requests,
            "ms": {name: quantiles(values) for name, values in samples.values.items()},
            "errors counted by Envoy": sum(errors.values()),
        }


async def _in_loop(call: Callable[[], object]) -> None:
    call()


async def _post(session: aiohttp.ClientSession, envoy: Envoy, model: str) -> None:
    """One request; raises unless it is answered with 200."""
    headers = {"content-type": "application/json"}
    async with session.post(envoy.url + PATH, data=load.chat(model), headers=headers) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{envoy.url} answered {response.status}")

"""The whole path through Envoy, against Envoy without a processor and with do-nothing processors."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp
from semroute_demo.envoy import EXT_PROC, Envoy, Variant, connection_manager, shipped, variant
from semroute_demo.pool import Pool, Speed
from semroute_demo.process import wait_until

from semroute_bench import load
from semroute_bench.load import NAMED, ROUTED
from semroute_bench.measuring import Samples, Size, quantiles
from semroute_bench.servers import READY_SECONDS_MAX, UNHURRIED, DoNothing, Measured
from semroute_bench.sidecar import Bare, default_model

WARM_UP = 50  # requests to each path that are not counted


async def measure(size: Size, folder: Path) -> dict[str, Any]:
    """Milliseconds on each path, one request at a time over kept connections, the paths in turn."""
    samples = Samples()
    async with AsyncExitStack() as exits:
        models = (NAMED, "deepseek-ai/DeepSeek-V3.2", ROUTED)
        pool = await exits.enter_async_context(Pool("pool", models, Speed(0.0, 0.0)))

        servers: Any = {"with": Measured(folder / "gateway", **UNHURRIED), "without": None}
        servers |= {"nothing": DoNothing(folder), "passes": DoNothing(folder, "passes")}
        envoys: dict[str, Envoy] = {}
        for name, server in servers.items():
            sockets = [str(socket) for socket in server.sockets] if server else []
            places = {f"vllm-{size}": ("127.0.0.1", pool.port) for size in ("small", "large")}
            bootstrap = variant(shipped(), Variant(sockets, places))
            if server is None:
                filters = connection_manager(bootstrap)["http_filters"]
                filters[:] = [each for each in filters if each["name"] != EXT_PROC]
            (folder / name).mkdir()
            envoy = envoys[name] = Envoy(bootstrap, folder / name)
            for each in (server, envoy) if server else (envoy,):
                exits.callback(each.stop)
            await asyncio.to_thread(envoy.start)
            if server:
                healthy = partial(envoy.healthy, "semroute")
                await asyncio.to_thread(wait_until, healthy, READY_SECONDS_MAX, f"Envoy to reach {name}")
        session = await exits.enter_async_context(aiohttp.ClientSession())

        async def post(envoy: Envoy, model: str) -> None:
            headers, url = {"content-type": "application/json"}, f"{envoy.url}/v1/chat/completions"
            async with session.post(url, data=load.chat(model), headers=headers) as response:
                await response.read()
                response.raise_for_status()

        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "bare session": Bare(default_model(), load.PROMPT).run,
            "Envoy alone": partial(post, envoys["without"], NAMED),
            "do-nothing processor": partial(post, envoys["nothing"], NAMED),
            "do-nothing processor with the pass": partial(post, envoys["passes"], ROUTED),
            "named model": partial(post, envoys["with"], NAMED),
            "routed model": partial(post, envoys["with"], ROUTED),
        }
        for number in range(WARM_UP + size.gateway_requests):
            for name, call in calls.items():
                started = perf_counter()
                await call()
                if number >= WARM_UP:
                    samples[name].append((perf_counter() - started) * 1e3)
        return {"gateway": {"ms": {name: quantiles(values) for name, values in samples.items()}}}

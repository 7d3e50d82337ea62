"""`semroute demo`: everything on one machine, real requests through it, and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.live import Live

from semroute_demo import report
from semroute_demo.client import Row, send
from semroute_demo.envoy import Envoy, Variant, shipped, variant
from semroute_demo.pool import Pool, Speed
from semroute_demo.process import ProcessError, free_port
from semroute_demo.prompts import PROMPTS
from semroute_demo.sidecar import Sidecar
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config

PORT_PREFERRED = 10_000
"""Envoy's port if it is free and none was asked for."""

TABLE_COLUMNS = 150
"""Width of the table where there is no terminal to ask."""

CONFIG_PATH = Path(__file__).with_name("semroute.yaml")
"""The sidecar's configuration."""

RESPONSE_HEADERS = {
    f"x-semroute-{key.replace('_', '-')}": key for key in ("difficulty", "domain", "rule", "decision_ms")
}
"""What this Envoy tells clients beyond the shipped headers: response header to metadata key."""

SPEEDS = {"small": Speed(0.015, 0.0004), "large": Speed(0.04, 0.001)}
"""The simulated pools: the large one thinks longer."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What is running."""

    envoy: Envoy
    sidecar: Sidecar
    settings: Config


def run_demo(once: bool, as_json: bool, port: int | None) -> int:
    """Run the demo and give its exit status.

    `once` ends it after the table; `as_json` prints one JSON object a request and a summary last.
    The status is 1 if something did not start, a request failed, or a pool got none.
    """
    folder = Path(tempfile.mkdtemp(prefix="semroute-demo-"))
    status = 1
    try:
        status = asyncio.run(_run(folder, once, as_json, port))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = 130
    except ProcessError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
    if status in (0, 130):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        Console(stderr=True).print(f"Logs and configurations are in {folder}", markup=False, highlight=False)
    return status


async def _run(folder: Path, once: bool, as_json: bool, port: int | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()
    assert main is not None
    # SIGTERM ends the demo as Ctrl-C does, so that no child outlives it.
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    async with _stack(folder, free_port(preferred=PORT_PREFERRED) if port is None else port) as stack:
        rows = await _send_all(stack, as_json)
        failures = stack.envoy.stats("failure_mode_allowed$|spurious_msgs_received$")
        summary = report.summarise(rows, stack.settings, sum(failures.values()))
        if as_json:
            _print_json({"summary": True, **summary.as_dict()})
        else:
            _console().print(report.summary_text(summary))
        if not once:
            loop.add_signal_handler(signal.SIGINT, stop.set)
            # Unbroken, however narrow the terminal is: these lines are there to be copied.
            invitation = report.invitation(stack.envoy, stack.sidecar)
            Console(stderr=as_json).print(invitation, highlight=False, soft_wrap=True)
            await stop.wait()
    return 0 if summary.ok else 1


@contextlib.asynccontextmanager
async def _stack(folder: Path, port: int) -> AsyncIterator[Stack]:
    """Pools, sidecar and Envoy, started in that order and stopped in the other."""
    settings = config_source.load(CONFIG_PATH).config
    async with contextlib.AsyncExitStack() as exits:
        pools: dict[str, tuple[str, int]] = {}
        # Envoy stops before the sidecar, so there is nobody to drain for.
        environment = {"SEMROUTE__SERVER__DRAIN_SECONDS": "0"}
        for name, pool in settings.pools.items():
            # The default pool serves the virtual names too: Envoy fails open, and then nobody rewrites them.
            aliases = tuple(settings.models) if name == settings.default_pool else ()
            simulated = await exits.enter_async_context(Pool(name, (pool.model, *aliases), SPEEDS[name]))
            pools[pool.cluster] = ("127.0.0.1", simulated.port)
            environment[f"SEMROUTE__POOLS__{name.upper()}__METRICS"] = (
                f"http://127.0.0.1:{simulated.port}/metrics"
            )
        # Waiting for a process blocks, and the pools have to answer health checks meanwhile.
        sidecar = Sidecar(CONFIG_PATH, folder, environment)
        exits.push_async_callback(asyncio.to_thread, sidecar.stop)
        await asyncio.to_thread(sidecar.start)
        changes = Variant([str(sidecar.socket)], pools, port, response_headers=RESPONSE_HEADERS)
        envoy = Envoy(variant(shipped(), changes), folder)
        exits.push_async_callback(asyncio.to_thread, envoy.stop)
        await asyncio.to_thread(envoy.start)
        await asyncio.to_thread(envoy.wait_for_sidecar)
        yield Stack(envoy, sidecar, settings)


async def _send_all(stack: Stack, as_json: bool) -> list[Row]:
    """Send every prompt, one after the other so that decision times are not those of a queue."""
    rows: list[Row] = []
    console = _console()
    live = not as_json and console.is_terminal
    table = Live(console=console, refresh_per_second=8) if live else contextlib.nullcontext()
    async with aiohttp.ClientSession(stack.envoy.url) as session:
        with table as display:
            for number, prompt in enumerate(PROMPTS, 1):
                rows.append(await send(session, number, prompt, stack.settings))
                if as_json:
                    _print_json(rows[-1].as_dict())
                elif display is not None:
                    display.update(report.table(rows))
        if not as_json and not live:
            console.print(report.table(rows))
    return rows


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_COLUMNS)


def _print_json(item: object) -> None:
    sys.stdout.write(json.dumps(item, ensure_ascii=False) + "\n")
    sys.stdout.flush()

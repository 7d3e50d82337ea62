"""`semroute demo`: everything on one machine, and requests through it."""

import asyncio
import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import click
import httpx2
from rich.console import Console

from semroute_demo import client
from semroute_demo.envoy import Envoy, Variant, shipped, variant
from semroute_demo.pool import Pool, Speed
from semroute_demo.process import ProcessError, free_port
from semroute_demo.sidecar import CONFIG_PATH, Sidecar
from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config

SPEEDS = {"small": Speed(0.015, 0.0004), "large": Speed(0.04, 0.001)}


@click.command()
@click.option("--once", is_flag=True, help="Send the prompts, print the table and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per row, and a summary last.")
@click.option("--port", type=click.IntRange(1, 65535), help="Envoy's port; default: 10000 if it is free.")
def demo(once: bool, as_json: bool, port: int | None) -> None:
    """Run Envoy, the sidecar and two simulated vLLM pools here, and route real prompts.

    Needs the extras `cpu` and `demo`. Nothing outside this machine is called.
    """
    folder = Path(tempfile.mkdtemp(prefix="semroute-demo-"))
    errors = Console(stderr=True, markup=False, highlight=False)
    status = 1  # something did not start, a request failed, or a pool received none
    try:
        status = asyncio.run(_run(folder, once, as_json, port))
    except (KeyboardInterrupt, asyncio.CancelledError):
        status = 130
    except ProcessError as error:
        errors.print(str(error))
    if status in (0, 130):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        errors.print(f"Logs and configurations are in {folder}")
    sys.exit(status)


async def _run(folder: Path, once: bool, as_json: bool, port: int | None) -> int:
    stop, loop, main = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert main is not None
    # SIGTERM ends the demo as Ctrl-C does, so that every child ends before it.
    loop.add_signal_handler(signal.SIGTERM, main.cancel)
    settings = config_source.load(CONFIG_PATH).config
    console = Console() if Console().is_terminal else Console(width=80)
    say = Console(stderr=True, highlight=False).print
    say("Starting two simulated pools, the sidecar and Envoy on this machine …", style="dim")
    async with _stack(folder, settings, port or free_port(preferred=10_000)) as (envoy, sidecar):
        prompts = client.prompts()
        say(f"Sending {len(prompts)} requests to {envoy.url}, one after the other …", style="dim")
        rows = await _send_all(envoy.url, prompts, settings, as_json)
        failures = envoy.stats("failure_mode_allowed$|spurious_msgs_received$")
        summary = client.summarize(rows, settings, sum(failures.values()))
        if as_json:
            click.echo(json.dumps({"summary": True, **summary}, ensure_ascii=False))
        else:
            console.print(client.table(rows, console.width))
            console.print(client.summary_text(summary))
        if not once:
            loop.add_signal_handler(signal.SIGINT, stop.set)
            places = {"url": envoy.url, "sidecar": sidecar.admin, "envoy": envoy.admin}
            text = client.COMMANDS.format(**places, log=envoy.access_log_path)
            # Not wrapped, even on a narrow terminal: these lines are for copying.
            Console(stderr=as_json).print(text, markup=False, highlight=False, soft_wrap=True)
            await stop.wait()
    return 0 if summary["ok"] else 1


@contextlib.asynccontextmanager
async def _stack(folder: Path, settings: Config, port: int) -> AsyncIterator[tuple[Envoy, Sidecar]]:
    """Pools, sidecar and Envoy, started in this order and stopped in reverse."""
    async with contextlib.AsyncExitStack() as exits:
        places: dict[str, tuple[str, int]] = {}
        # Envoy stops before the sidecar, so there is nothing to drain.
        environment = {"SEMROUTE__SERVER__DRAIN_SECONDS": "0"}
        for name, pool in settings.pools.items():
            # The default pool also serves the virtual names: if Envoy fails open, nothing rewrites them.
            aliases = tuple(settings.models) if name == settings.default_pool else ()
            simulated = await exits.enter_async_context(Pool(name, (pool.model, *aliases), SPEEDS[name]))
            places[pool.cluster] = ("127.0.0.1", simulated.port)
            page = f"http://127.0.0.1:{simulated.port}/metrics"
            environment[f"SEMROUTE__POOLS__{name.upper()}__METRICS"] = page
        # In threads, because waiting for a process blocks, and the pools must answer health checks meanwhile.
        sidecar = Sidecar(CONFIG_PATH, folder, environment)
        changes = Variant([str(sidecar.socket)], places, port, response_headers=client.RESPONSE_HEADERS)
        envoy = Envoy(variant(shipped(), changes), folder)
        for process in (sidecar, envoy):
            exits.push_async_callback(asyncio.to_thread, process.stop)
            await asyncio.to_thread(process.start)
        await asyncio.to_thread(envoy.wait_for_sidecar)
        yield envoy, sidecar


async def _send_all(
    url: str, prompts: Sequence[client.Json], settings: Config, as_json: bool
) -> list[client.Json]:
    """Send every prompt, one after the other so that decision times include no queue."""
    rows: list[client.Json] = []
    async with httpx2.AsyncClient(base_url=url, timeout=60.0) as http:
        for number, prompt in enumerate(prompts, 1):
            rows.append(await client.send(http, number, prompt, settings))
            if as_json:
                click.echo(json.dumps(rows[-1], ensure_ascii=False))
    return rows

"""Measure what accounting costs behind a real Envoy: time to the first byte, CPU of Envoy and the sidecar.

Every variant has its own Envoy and sidecar; all run at once, and their requests alternate, so that whatever
else the machine does falls on all of them.

    python tools/measure_accounting.py    a row for each variant; takes some minutes
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
from semroute_demo.envoy import (
    Bootstrap,
    Envoy,
    Variant,
    clusters,
    connection_manager,
    ext_proc,
    shipped,
    variant,
)
from semroute_demo.pool import Pool, Speed
from semroute_demo.sidecar import CONFIG_PATH, Sidecar

TICKS = os.sysconf("SC_CLK_TCK")
AT_ONCE = 16
WARM_UP = 20
MODEL = "Qwen/Qwen3-8B"  # named, so that no decision of the encoder adds its own variance
ROUNDS = 4  # in which the variants take turns
USAGE = {"stream_options": {"include_usage": True}}


def without(bootstrap: Bootstrap) -> None:
    """Neither the filter nor its log."""
    manager = connection_manager(bootstrap)
    manager["http_filters"] = [each for each in manager["http_filters"] if each["name"] != "accounting"]
    manager["access_log"] = [each for each in manager["access_log"] if "stdout" in each["name"]]


def observed(bootstrap: Bootstrap) -> None:
    """Instead of the filter a second external processor that is sent every piece and only reads it."""
    without(bootstrap)
    config = json.loads(json.dumps(ext_proc(bootstrap)))
    for key in ("allow_mode_override", "allowed_override_modes", "message_timeout", "mutation_rules"):
        del config[key]
    config["stat_prefix"], config["observability_mode"] = "accounting", True
    mode = {"request_header_mode": "SKIP", "response_header_mode": "SEND", "response_body_mode": "STREAMED"}
    config["processing_mode"].update(mode)
    connection_manager(bootstrap)["http_filters"].insert(-1, {"name": "observed", "typed_config": config})


VARIANTS: dict[str, tuple[str, Callable[[Bootstrap], None]]] = {
    "neither filter nor accounting": ("false", without),
    "the filter, accounting off": ("false", lambda _: None),
    "accounting on": ("true", lambda _: None),
    "a second ext_proc, observing": ("false", observed),
}


class Gateway:
    """One variant, running."""

    def __init__(self, name: str, pool: Pool, folder: Path) -> None:
        accounting, edit = VARIANTS[name]
        folder.mkdir()
        settings = {"SEMROUTE__ACCOUNTING": accounting, "SEMROUTE__TELEMETRY__LOG_DECISIONS": "false"}
        self.sidecar = Sidecar(CONFIG_PATH, folder, settings)
        self.sidecar.start()
        place = ("127.0.0.1", pool.port)
        pools = {name: place for name in clusters(shipped()) if name in ("vllm-small", "vllm-large")}
        changed = variant(shipped(), Variant([str(self.sidecar.socket)], pools))
        edit(changed)
        self.envoy = Envoy(changed, folder)
        self.envoy.start()

    def used(self) -> tuple[float, float]:
        """Seconds of CPU of Envoy and the sidecar so far."""
        return _cpu(self.envoy.process.pid), _cpu(self.sidecar.process.pid)

    def stop(self) -> None:
        """Stop both."""
        self.envoy.stop()
        self.sidecar.stop()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def ask(client: aiohttp.ClientSession, url: str, stream: bool, tokens: int = 200) -> tuple[float, int]:
    """Seconds to the first byte of the body, and the number of pieces in which it came."""
    messages = [{"role": "user", "content": "Where is Lima?"}]
    body = {"model": MODEL, "messages": messages, "stream": stream, "max_tokens": tokens}
    body |= USAGE if stream else {}
    started, first, pieces = time.perf_counter(), 0.0, 0
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        async for _ in response.content.iter_any():
            first, pieces = first or time.perf_counter() - started, pieces + 1
    assert response.status == 200
    return first, pieces


async def first_bytes(gateways: dict[str, Gateway], requests: int) -> dict[str, float]:
    """Median milliseconds to the first byte of a stream, one request at a time."""
    found: dict[str, list[float]] = {name: [] for name in gateways}
    async with aiohttp.ClientSession() as client:
        for number in range(WARM_UP + requests):
            for name, gateway in gateways.items():
                seconds, _ = await ask(client, gateway.envoy.url, stream=True, tokens=2)
                if number >= WARM_UP:
                    found[name].append(seconds)
    return {name: statistics.median(seconds) * 1e3 for name, seconds in found.items()}


async def cpu(gateways: dict[str, Gateway], requests: int, stream: bool) -> dict[str, tuple[float, float]]:
    """Microseconds of Envoy and the sidecar for each request, or for each piece of a stream."""

    async def some(client: aiohttp.ClientSession, url: str) -> int:
        return sum([(await ask(client, url, stream))[1] for _ in range(requests // (AT_ONCE * ROUNDS))])

    total = {name: [0.0, 0.0, 0.0] for name in gateways}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        for _ in range(ROUNDS):
            for name, gateway in gateways.items():
                before = gateway.used()
                pieces = await asyncio.gather(*(some(client, gateway.envoy.url) for _ in range(AT_ONCE)))
                await asyncio.sleep(1.2)  # Envoy sends its log once a second
                after = gateway.used()
                units = sum(pieces) if stream else requests // ROUNDS
                for index, used in enumerate((after[0] - before[0], after[1] - before[1], units)):
                    total[name][index] += used
    return {
        name: (envoy / units * 1e6, sidecar / units * 1e6) for name, (envoy, sidecar, units) in total.items()
    }


async def run(requests: int) -> None:
    """Start everything, measure, and print a row for each variant."""
    speed = Speed(first_token_seconds=0.0, token_seconds=0.002, slots=256)
    with tempfile.TemporaryDirectory() as folder:
        async with Pool("small", (MODEL,), speed) as pool:
            gateways: dict[str, Gateway] = {}
            try:
                for name in VARIANTS:
                    gateways[name] = Gateway(name, pool, Path(folder, str(len(gateways))))
                await asyncio.sleep(3)  # for the first health checks
                first = await first_bytes(gateways, requests)
                whole = await cpu(gateways, requests, stream=False)
                pieces = await cpu(gateways, requests, stream=True)
            finally:
                for gateway in gateways.values():
                    gateway.stop()
    sys.stdout.write("variant | first byte, ms | Envoy, sidecar: us per request | us per piece\n")
    for name in VARIANTS:
        figures = (first[name], *whole[name], *pieces[name])
        sys.stdout.write(" | ".join([name, *(f"{figure:.2f}" for figure in figures)]) + "\n")


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left behind
    parser = argparse.ArgumentParser(description="Measure what accounting costs behind a real Envoy.")
    parser.add_argument("--requests", type=int, default=1_280, help="requests for each variant and figure")
    asyncio.run(run(parser.parse_args().requests))


if __name__ == "__main__":
    main()

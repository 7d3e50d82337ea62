"""What the sidecar adds to a request through Envoy, against the same Envoy without it.

One run, on one machine: two Envoys in front of the same simulated pool, one with the external
processor and one without, and the bare ONNX Runtime session as the limit. Requests go to them in
turn, one at a time over kept connections, so that a noisy moment falls on all alike. Only ratios
and differences within a run mean anything.

    make bench            or: python benchmarks/overhead.py --rounds 2000 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from semroute_extproc import bundle
from semroute_extproc.demo.envoy import Envoy, Variant, connection_manager, shipped, variant
from semroute_extproc.demo.process import Process, free_port
from semroute_extproc.demo.sidecar import Sidecar
from semroute_extproc.encoder.onnx import OnnxModel

ROOT = Path(__file__).resolve().parent.parent
PROMPT = (
    "A train leaves the station at nine in the morning at sixty miles an hour, and a second one follows "
    "an hour later at eighty. At what time does the second catch up with the first, how far from the "
    "station are they then, and how would the answer change if the first stopped for ten minutes?"
)
"""About sixty tokens, as a question people ask."""

WARM_UP = 100
"""Requests to each path that are not counted."""


def chat(model: str) -> bytes:
    """A chat completion whose answer is one token."""
    message = {"role": "user", "content": PROMPT}
    return json.dumps({"model": model, "messages": [message], "max_tokens": 1}).encode()


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """Milliseconds for one request; raises unless it is answered with 200."""
    started = time.perf_counter()
    async with session.post(url, data=body, headers={"content-type": "application/json"}) as response:
        await response.read()
        if response.status != 200:
            raise RuntimeError(f"{url} answered {response.status}")
    return (time.perf_counter() - started) * 1e3


async def interleaved(
    paths: dict[str, Callable[[], Awaitable[float]]], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of each path, the paths taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for number in range(WARM_UP + rounds):
        for name, call in paths.items():
            took = await call()
            if number >= WARM_UP:
                times[name].append(took)
    return times


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bare(rounds: int) -> tuple[Callable[[], Awaitable[float]], float, int]:
    """The model's session alone on the same token ids: a call, its CPU seconds a pass, the tokens."""
    model = OnnxModel(bundle.load(bundle.default_bundle(), ("cpu",)), "cpu", threads=1)
    framed = [model.framer.frame(PROMPT)]
    started = time.process_time()
    for _ in range(rounds):
        model.run(framed)
    cpu = (time.process_time() - started) / rounds

    async def call() -> float:
        before = time.perf_counter()
        model.run(framed)
        return (time.perf_counter() - before) * 1e3

    return call, cpu, len(framed[0].ids)


def summary(times: list[float]) -> dict[str, float]:
    """Median and tail of milliseconds."""
    cuts = statistics.quantiles(times, n=1000, method="inclusive")
    return {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "mean": statistics.fmean(times)}


async def measure(rounds: int, folder: Path) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    config = ROOT / "semroute_extproc" / "demo" / "semroute.yaml"
    port = free_port()
    command = [sys.executable, "-m", "semroute_extproc.demo.pool", "--port", str(port)]
    command += ["--first-token-ms", "0", "--token-ms", "0"]
    for name in ("Qwen/Qwen3-8B", "deepseek-ai/DeepSeek-V3.2", "auto"):
        command += ["--model", name]
    pool = Process("pool", command, folder / "pool.log")
    sidecar = Sidecar(config, folder, {"SEMROUTE__TELEMETRY__LOG_DECISIONS": "false"})
    pools = {"vllm-small": ("127.0.0.1", port), "vllm-large": ("127.0.0.1", port)}
    (folder / "with").mkdir()
    (folder / "without").mkdir()
    settings = Variant(sockets=[str(sidecar.socket)], pools=pools)
    with_it = Envoy(variant(shipped(), settings), folder / "with")
    plain = variant(shipped(), replace(settings))
    filters = connection_manager(plain)["http_filters"]
    filters[:] = [f for f in filters if f["name"] != "envoy.filters.http.ext_proc"]
    without = Envoy(plain, folder / "without")
    running: list[Any] = []
    try:
        pool.start(lambda: _listening(port), 20)
        running.append(pool)
        started = time.perf_counter()
        sidecar.start()
        start_seconds = time.perf_counter() - started
        running.append(sidecar)
        for envoy in (with_it, without):
            envoy.start()
            running.append(envoy)
        while not with_it.healthy("semroute"):
            await asyncio.sleep(0.1)
        bare_call, bare_cpu, tokens = bare(200)
        async with aiohttp.ClientSession() as session:
            url = "/v1/chat/completions"
            paths = {
                "bare session": bare_call,
                "Envoy alone": lambda: post(session, without.url + url, chat("Qwen/Qwen3-8B")),
                "named model": lambda: post(session, with_it.url + url, chat("Qwen/Qwen3-8B")),
                "routed model": lambda: post(session, with_it.url + url, chat("auto")),
            }
            times = await interleaved(paths, rounds)
            pid = sidecar.process.pid
            before = cpu_seconds(pid)
            for _ in range(rounds):
                await post(session, with_it.url + url, chat("auto"))
            routed_cpu = (cpu_seconds(pid) - before) / rounds
            before = cpu_seconds(pid)
            for _ in range(rounds):
                await post(session, with_it.url + url, chat("Qwen/Qwen3-8B"))
            named_cpu = (cpu_seconds(pid) - before) / rounds
        errors = with_it.stats("ext_proc.*(failure_mode_allowed|spurious_msgs_received|message_timeouts)")
        return {
            "schema": 1,
            "machine": machine(),
            "rounds": rounds,
            "tokens": tokens,
            "milliseconds": {name: summary(values) for name, values in times.items()},
            "cpu_ms": {
                "bare session": bare_cpu * 1e3,
                "named model": named_cpu * 1e3,
                "routed model": routed_cpu * 1e3,
            },
            "start_seconds": start_seconds,
            "resident_mib": resident_mib(pid),
            "envoy_errors": sum(errors.values()),
        }
    finally:
        for process in reversed(running):
            process.stop()


def _listening(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    import onnxruntime

    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "kernel": platform.release(),
    }


def table(report: dict[str, Any]) -> Table:
    """The report for people."""
    shown = Table(title=f"One request at a time, {report['tokens']} tokens, {report['rounds']} rounds")
    for column in ("path", "p50 ms", "p90 ms", "p99 ms", "p50 over Envoy alone", "sidecar CPU ms"):
        shown.add_column(column, justify="left" if column == "path" else "right")
    base = report["milliseconds"]["Envoy alone"]["p50"]
    for name, row in report["milliseconds"].items():
        added = f"{row['p50'] - base:+.2f}" if name.endswith("model") else ""
        cpu = report["cpu_ms"].get(name)
        shown.add_row(
            name,
            *(f"{row[p]:.2f}" for p in ("p50", "p90", "p99")),
            added,
            f"{cpu:.2f}" if cpu is not None else "",
        )
    return shown


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="folder for overhead.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="semroute-bench-") as folder:
        report = asyncio.run(measure(arguments.rounds, Path(folder)))
    console = Console()
    console.print(table(report))
    console.print(
        f"start to ready {report['start_seconds']:.2f} s, resident {report['resident_mib']:.0f} MiB, "
        f"errors counted by Envoy {report['envoy_errors']}"
    )
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "overhead.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["envoy_errors"] else 0


if __name__ == "__main__":
    sys.exit(main())

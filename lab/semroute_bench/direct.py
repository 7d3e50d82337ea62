"""The session alone, the pipeline in process, and the server driven directly, taken in turn."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import statistics
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from semroute_bench import load
from semroute_bench.load import Client
from semroute_bench.machine import cpu_seconds
from semroute_bench.servers import CONFIG, Measured, floor
from semroute_bench.wire import Wire, connect
from semroute_extproc.config import source as config_source
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.request.view import Api, Decide, RequestHead
from semroute_extproc.serve import build
from semroute_extproc.strategies.judge_client import Judges

NAMED = "Qwen/Qwen3-8B"
ROUTED = "auto"
LENGTHS = (16, 64, 128, 256, 512)
"""Tokens of a prompt; past the bundle's window its head and tail are read."""

BUSY = 16
"""Streams at once that keep one server busy."""

UNHURRIED = {"encoder__cache_entries": "0", "server__deadline_ms": "5000"}
"""Settings where the cost of a decision is measured and not whether it comes in time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 7
    passes: int = 60
    """Encoder passes of each kind in a round."""
    streams: int = 1_500
    """Streams without an encoder pass in a round."""


@dataclass
class Samples:
    """Name to one value a round."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Keep one round's value."""
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        """The middle round."""
        return statistics.median(self.values[name])

    def ratios(self, name: str, base: str) -> list[float]:
        """The rounds' ratios: both of a pair had the same moment."""
        pairs = zip(self.values[name], self.values[base], strict=True)
        return [one / other for one, other in pairs]

    def medians(self) -> dict[str, float]:
        """All of them."""
        return {name: self.median(name) for name in self.values}


class Bare:
    """The session alone on one text's token ids."""

    def __init__(self, model: OnnxModel, text: str) -> None:
        framed = model.framer.frame(text)
        self.tokens = len(framed.ids)
        self.once = model.alone([framed])

    def cpu_ms(self, passes: int) -> tuple[float, float]:
        """CPU and wall milliseconds a pass."""
        return timed(self.once, passes)

    def rate(self, passes: int, threads: int) -> float:
        """Passes a second on `threads` threads."""
        started = perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: self.once(), range(passes)))
        return passes / (perf_counter() - started)


def timed(call: Callable[[], object], count: int) -> tuple[float, float]:
    """CPU and wall milliseconds a call."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(count):
        call()
    return (process_time() - cpu) / count * 1e3, (perf_counter() - wall) / count * 1e3


async def timed_async(call: Callable[[], Awaitable[object]], count: int) -> tuple[float, float]:
    """The same for coroutines."""
    wall, cpu = perf_counter(), process_time()
    for _ in range(count):
        await call()
    return (process_time() - cpu) / count * 1e3, (perf_counter() - wall) / count * 1e3


def in_process(model: OnnxModel) -> Pipeline:
    """The pipeline of the demo's configuration, without a cache; call within a loop."""
    environment = {f"SEMROUTE__{name.upper()}": value for name, value in UNHURRIED.items()}
    loaded = config_source.load(CONFIG, environment)
    classifier = build.make_classifier(loaded.config, {build.DEFAULT: model})
    policies = build.make_policies(loaded, classifier.bundle)
    return build.make_pipeline(loaded, policies, classifier, Judges())


class _Recorded:
    """A session that gives at once what it once gave: what is left is everything else."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def run(self, *_: Any) -> Any:
        """The recorded outputs."""
        return self._values


def without_passes(model: OnnxModel, text: str) -> OnnxModel:
    """The model with its outputs for `text` recorded in place of its session."""
    found = copy.copy(model)
    found._session = _Recorded(model.alone([model.framer.frame(text)])())
    return found


def decide(body: bytes) -> Decide:
    """A request whose body is complete."""
    return Decide(RequestHead("POST", "/v1/chat/completions", {}), Api.CHAT_COMPLETIONS, body)


def default_model() -> OnnxModel:
    """The shipped bundle on one thread."""
    return OnnxModel(bundle.load(bundle.default_bundle(), ("cpu",)), "cpu")


async def rounds(plan: Plan, folder: Path, lanes: int, full: bool = True) -> tuple[Samples, dict[str, Any]]:
    """Everything at 64 tokens, in turn; `full` adds what the check in CI does without."""
    model = default_model()
    bare = Bare(model, load.prompt_of(model.framer, 64))
    fp32 = fp32_pass(model, load.prompt_of(model.framer, 64), folder) if full else None
    pipeline = in_process(model)
    text = load.prompt_of(model.framer, 64)
    own = in_process(without_passes(model, text))
    routed, named = load.exchange(load.chat(ROUTED, text)), load.exchange(load.chat(NAMED, text))
    whole = decide(load.chat(ROUTED, text))
    nothing, passes = floor(folder), floor(folder, "passes")
    sidecar = Measured(folder / "one", **UNHURRIED)
    two = Measured(folder / "two", **UNHURRIED, server__workers="2") if full else None
    samples = Samples()
    try:
        to_floor = await connect(f"{folder}/floor.sock")
        to_passes = await connect(f"{folder}/passes.sock")
        to_sidecar = await connect(sidecar.sockets[0])
        for wire in (to_floor, to_sidecar):
            await wire.closed([named] * 320, BUSY)
        for wire in (to_passes, to_sidecar):
            await wire.closed([routed] * 4 * lanes, 2 * lanes)
        for _ in range(plan.rounds):
            bare_cpu, bare_wall = bare.cpu_ms(plan.passes)
            samples.add("bare cpu ms", bare_cpu)
            samples.add("bare wall ms", bare_wall)
            if fp32:
                samples.add("fp32 cpu ms", timed(fp32, plan.passes // 4)[0])
            cpu, wall = await timed_async(lambda: pipeline.decide(whole), plan.passes)
            samples.add("pipeline cpu ms", cpu)
            samples.add("pipeline wall ms", wall)
            cpu, _ = await timed_async(lambda: own.decide(whole), plan.streams // 2)
            samples.add("own cpu ms", cpu)
            for at_once in (1, 2 * lanes):
                # As many for each lane: the end, where lanes run empty, weighs as little.
                requests = [routed] * (plan.passes * min(at_once, lanes))
                await _streams(samples, f"passes x{at_once}", to_passes, [passes.pid], requests, at_once)
                await _streams(samples, f"server x{at_once}", to_sidecar, sidecar.pids, requests, at_once)
            samples.add("bare a second", bare.rate(plan.passes, lanes))
            requests = [named] * plan.streams
            await _streams(samples, "named", to_sidecar, sidecar.pids, requests, BUSY)
            await _streams(samples, "floor", to_floor, [nothing.pid], requests, BUSY)
            if two:
                await _two_workers(samples, two, named, plan.streams)
        for wire in (to_floor, to_passes, to_sidecar):
            wire.close()
    finally:
        await pipeline.classifier.close()
        await own.classifier.close()
        nothing.stop()
        passes.stop()
        for server in (sidecar, two):
            if server:
                server.stop()
    return samples, {
        "tokens": bare.tokens,
        "start seconds": sidecar.start_seconds,
        "two workers start seconds": two.start_seconds if two else None,
    }


async def _streams(
    samples: Samples, name: str, wire: Wire, pids: Sequence[int], requests: list[load.Exchange], at_once: int
) -> None:
    """CPU milliseconds of a stream and streams a second of one server's processes."""
    before, started = sum(map(cpu_seconds, pids)), perf_counter()
    await wire.closed(requests, at_once)
    samples.add(f"{name} a second", len(requests) / (perf_counter() - started))
    samples.add(f"{name} cpu ms", (sum(map(cpu_seconds, pids)) - before) / len(requests) * 1e3)


async def _two_workers(samples: Samples, two: Measured, named: load.Exchange, streams: int) -> None:
    wires = [await connect(socket) for socket in two.sockets]
    await asyncio.gather(*(wire.closed([named] * BUSY, BUSY) for wire in wires))
    before = two.cpu_seconds()
    await asyncio.gather(*(wire.closed([named] * (streams // 2), BUSY) for wire in wires))
    samples.add("two workers named cpu ms", (two.cpu_seconds() - before) / (streams // 2 * 2) * 1e3)
    for wire in wires:
        wire.close()


def fp32_pass(model: OnnxModel, text: str, folder: Path) -> Callable[[], object] | None:
    """A pass of the same weights in float32, made from the GPU's float16 graph; None without `onnx`."""
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnxruntime
    from semroute_lab.train.graphs import write_widened

    path = folder / "fp32.onnx"
    write_widened(model.bundle.path / model.bundle.manifest.graphs["cuda"], path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return OnnxModel(model.bundle, "cpu", session).alone([model.framer.frame(text)])


async def lengths(passes: int, folder: Path) -> list[dict[str, float]]:
    """CPU milliseconds of session, pipeline and server, a prompt's length at a time."""
    model = default_model()
    pipeline = in_process(model)
    sidecar = Measured(folder / "lengths", **UNHURRIED)
    rows: list[dict[str, float]] = []
    try:
        async with Client(f"unix:{sidecar.sockets[0]}") as client:
            for tokens in LENGTHS:
                text = load.prompt_of(model.framer, tokens)
                bare, whole = Bare(model, text), decide(load.chat(ROUTED, text))
                request = load.exchange(load.chat(ROUTED, text))
                samples = Samples()
                await client.closed(request, 4, 2)
                call = partial(pipeline.decide, whole)
                for _ in range(3):
                    samples.add("bare", bare.cpu_ms(passes)[0])
                    samples.add("pipeline", (await timed_async(call, passes))[0])
                    before = sidecar.cpu_seconds()
                    await client.closed(request, passes, 2)
                    samples.add("server", (sidecar.cpu_seconds() - before) / (passes // 2 * 2) * 1e3)
                rows.append({"tokens": tokens, "read": bare.tokens, **samples.medians()})
    finally:
        await pipeline.classifier.close()
        sidecar.stop()
    return rows


async def bodies(count: int, folder: Path) -> list[dict[str, Any]]:
    """CPU and median wall milliseconds of the server, a body at a time; nothing is read twice."""
    sidecar = Measured(folder / "bodies", **UNHURRIED)
    rows: list[dict[str, Any]] = []
    try:
        async with Client(f"unix:{sidecar.sockets[0]}") as client:
            for model in (ROUTED, NAMED):
                for name, body in load.bodies(model).items():
                    request = load.exchange(body)
                    await client.send(request)
                    before = sidecar.cpu_seconds()
                    took = [(await client.send(request))[0] for _ in range(count)]
                    cpu = (sidecar.cpu_seconds() - before) / count * 1e3
                    row = {"body": name, "model": "routed" if model == ROUTED else "named"}
                    rows.append({**row, "bytes": len(body), "cpu ms": cpu, "p50 ms": statistics.median(took)})
    finally:
        sidecar.stop()
    return rows

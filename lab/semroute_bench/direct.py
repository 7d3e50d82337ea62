"""The session alone, the pipeline in process and the server without Envoy, in turn."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median, stdev
from time import perf_counter
from typing import Any

from semroute_bench import load
from semroute_bench.load import NAMED, ROUTED
from semroute_bench.measuring import Figures, Samples, Size, each
from semroute_bench.servers import BUSY, UNHURRIED, DoNothing, Measured, Target
from semroute_bench.sidecar import Bare, decisions, default_model, timed, yardstick
from semroute_extproc.io.cores import usable_cores

LENGTHS = (16, 64, 128, 256, 512)  # tokens; of a prompt longer than the window the two ends are read


async def costs(size: Size, folder: Path) -> Figures:
    """The ratios that are judged, and the medians they come from."""
    samples, more = await rounds(size, folder, usable_cores())
    found = ratios(samples, usable_cores())
    judged = {"ratios": each(median, found), "spreads": each(stdev, found), "medians": each(median, samples)}
    return {**more, "rounds": size.rounds, **judged}


async def rounds(size: Size, folder: Path, cores: int) -> tuple[Samples, dict[str, Any]]:
    """Every path at 64 tokens, in turn."""
    model, samples = default_model(), Samples()
    text = load.prompt_of(model.framer, 64)
    bare = Bare(model, text)
    routed, named = (load.exchange(load.chat(name, text)) for name in (ROUTED, NAMED))
    async with AsyncExitStack() as exits:
        pipeline = await exits.enter_async_context(decisions(model, text))
        own = await exits.enter_async_context(decisions(model, text, cached="16"))
        direct = await exits.enter_async_context(decisions(model, text, NAMED))
        floor = await Target.of(DoNothing(folder), exits)
        passes = await Target.of(DoNothing(folder, "passes"), exits)
        one = Measured(folder / "one", **UNHURRIED)
        server = await Target.of(one, exits)
        two = await Target.of(Measured(folder / "two", **UNHURRIED, server__workers="2"), exits)
        for target in (floor, server):
            await target.send(named, 20 * BUSY, BUSY)
        for target in (passes, server):
            await target.send(routed, 4 * cores, 2 * cores)
        for _ in range(size.rounds):
            for name, call in (("bare", bare.run), ("pipeline", pipeline)):
                samples[f"{name} cpu ms"].append(await timed(call, size.passes))
            for name, call in (("yardstick", yardstick), ("own", own), ("own named", direct)):
                samples[f"{name} cpu ms"].append(await timed(call, size.streams // 2))
            for at_once in (1, 2 * cores):
                # The same number per worker thread, so that the idle time at the end has the same weight.
                count = size.passes * min(at_once, cores)
                await passes.measure(samples, f"passes x{at_once}", routed, count, at_once)
                await server.measure(samples, f"server x{at_once}", routed, count, at_once)
            samples["bare a second"].append(_rate(bare, size.passes, cores))
            await server.measure(samples, "named", named, size.streams, BUSY)
            await floor.measure(samples, "floor", named, size.streams, BUSY)
            await two.send(named, BUSY, BUSY)
            await two.measure(samples, "two workers named", named, size.streams, BUSY)
    return samples, {"tokens": bare.tokens, "start seconds": one.start_seconds}


def ratios(samples: Samples, cores: int) -> dict[str, list[float]]:
    """The ratios that are judged: within a round, one per round."""
    busy, passes = f"server x{2 * cores}", f"passes x{2 * cores}"
    of = {
        "server cpu / bare": ("server x1 cpu ms", "bare cpu ms"),
        "busy server cpu / bare": (f"{busy} cpu ms", "bare cpu ms"),
        "server cpu / passes": ("server x1 cpu ms", "passes x1 cpu ms"),
        "busy server cpu / passes": (f"{busy} cpu ms", f"{passes} cpu ms"),
        "server rate / passes": (f"{busy} a second", f"{passes} a second"),
        "pipeline cpu / bare": ("pipeline cpu ms", "bare cpu ms"),
        "server rate / bare": (f"{busy} a second", "bare a second"),
        "own cpu / yardstick": ("own cpu ms", "yardstick cpu ms"),
        "own named cpu / yardstick": ("own named cpu ms", "yardstick cpu ms"),
        "named rate / floor": ("named a second", "floor a second"),
        "named cpu / floor": ("named cpu ms", "floor cpu ms"),
        "two workers / one": ("two workers named cpu ms", "named cpu ms"),
    }
    return {name: samples.ratios(*pair) for name, pair in of.items()}


def _rate(bare: Bare, passes: int, threads: int) -> float:
    """Passes per second on `threads` threads."""
    started = perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: bare.once(), range(passes)))
    return passes / (perf_counter() - started)


async def lengths(size: Size, folder: Path) -> Figures:
    """CPU milliseconds of session, pipeline and server by the length of the prompt."""
    model, passes = default_model(), size.passes_a_length
    rows: list[dict[str, float]] = []
    async with AsyncExitStack() as exits:
        server = await Target.of(Measured(folder / "lengths", **UNHURRIED), exits)
        for tokens in LENGTHS:
            text, samples = load.prompt_of(model.framer, tokens), Samples()
            bare, request = Bare(model, text), load.exchange(load.chat(ROUTED, text))
            await server.send(request, 4, 2)
            async with decisions(model, text) as pipeline:
                for _ in range(3):
                    samples["bare cpu ms"].append(await timed(bare.run, passes))
                    samples["pipeline cpu ms"].append(await timed(pipeline, passes))
                    await server.measure(samples, "server", request, passes, 2)
            paths = {name: median(samples[f"{name} cpu ms"]) for name in ("bare", "pipeline", "server")}
            rows.append({"tokens": tokens, "read": bare.tokens, **paths})
    return {"lengths": rows}


async def bodies(size: Size, folder: Path) -> Figures:
    """CPU and median wall milliseconds of the server by body; no text is answered from the cache."""
    rows = []
    async with AsyncExitStack() as exits:
        server = await Target.of(Measured(folder / "bodies", **UNHURRIED), exits)
        for name, model in (("routed", ROUTED), ("named", NAMED)):
            for body, content in load.bodies(model).items():
                request, samples = load.exchange(content), Samples()
                await server.send(request, 1, 1)
                answers = await server.measure(samples, "server", request, size.requests_a_body, 1)
                p50 = median(answer.ms for answer in answers)
                times = {"cpu ms": samples["server cpu ms"][0], "p50 ms": p50}
                rows.append({"body": body, "model": name, "bytes": len(content), **times})
    return {"bodies": rows}

"""Two simulated pools in a burst of requests, with and without the load controller.

The controller, the policy and the strategy are the server's. Assumptions, none of them measured:

- A pool batches continuously: up to `slots` requests decode one token per step, a step takes
  `step_seconds + step_seconds_per_request * running`, and `PREFILL_TOKENS` of a prompt are read per step.
  A request waits, first come, first served, for a slot and for room in the KV cache.
- Difficulties are drawn from the shipped bundle's quantiles, and are exactly the probability that the weak
  pool's answer is insufficient. Quality is one minus the mean of that over all requests.
- Prompts and answers have log-normal lengths, arrivals are Poisson.

    python -m semroute_bench.load_simulation > benchmarks/results/load_simulation.json
"""

import dataclasses
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np

from semroute_bench.sidecar import read_context
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.policy import plan
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.pool_metrics import INTERVAL_SECONDS
from semroute_extproc.strategies import registry

BURSTS = {"strong pool overrun": 16.0, "both pools overrun": 30.0}  # requests per second
QUIET = 6.0  # requests per second before and after
BEGIN, END, UNTIL = 300.0, 600.0, 1_200.0  # seconds: of the burst, and of the traffic
SHARE = 0.4  # the configured strong share
SEED = 1
PREFILL_TOKENS = 512  # tokens of a prompt that are read in one step
PROMPT, ANSWER, SPREAD = 300.0, 250.0, 0.6  # median tokens, deviation of their logarithm
BIN_SECONDS = 10.0  # width of the bins of the curves
CURVES = ("strong_share", "p95_seconds", "quality")


Figures = dict[str, float]


@dataclass
class Request:
    """One request, its pool and its time."""

    arrived: float
    difficulty: float
    prompt: int
    answer: int
    pool: str
    finished: float = math.nan


@dataclass
class Pool:
    """A pool that batches continuously; `advance` moves it to a time."""

    slots: int
    cache_tokens: int
    step_seconds: float
    step_seconds_per_request: float
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    steps: float = 0.0  # steps so far; a request is done at its own number of steps
    running: list[tuple[float, float, Request]] = field(default_factory=list)
    cached: int = 0

    def take(self, request: Request) -> None:
        """A request arrives now."""
        self.advance(request.arrived)
        self.waiting.append(request)
        self._admit()

    def advance(self, now: float) -> None:
        """Move to a time: completed requests leave, waiting ones enter."""
        while self.running:
            seconds = self.step_seconds + self.step_seconds_per_request * len(self.running)
            done_at = self.now + (self.running[0][0] - self.steps) * seconds
            if done_at > now:
                self.steps += (now - self.now) / seconds
                break
            self.now = done_at
            self.steps, _, request = heapq.heappop(self.running)
            request.finished = done_at
            self.cached -= request.prompt + request.answer
            self._admit()
        self.now = now

    def load(self) -> dict[str, float]:
        """The values of vLLM's gauges."""
        queue = {"running": float(len(self.running)), "waiting": float(len(self.waiting))}
        return {**queue, "kv_cache_usage": min(self.cached / self.cache_tokens, 1.0)}

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            request = self.waiting[0]
            tokens = request.prompt + request.answer
            if self.cached + tokens > self.cache_tokens and self.running:
                return
            self.waiting.popleft()
            self.cached += tokens
            steps = self.steps + request.answer + request.prompt / PREFILL_TOKENS
            heapq.heappush(self.running, (steps, request.arrived, request))


def simulate(burst: float, controlled: bool, seed: int = SEED) -> list[Request]:
    """Every request, with its pool and its time; with the load controller's defaults or without it."""
    # The weak pool holds four times as much as the strong one.
    pools = {"small": Pool(128, 400_000, 0.008, 0.0001), "large": Pool(64, 100_000, 0.020, 0.0004)}
    pair = {"kind": "threshold", "weak": "small", "strong": "large", "strong_share": SHARE}
    each = ((name, {"cluster": name, "model": name, "metrics": f"http://{name}/metrics"}) for name in pools)
    settings = {"pools": dict(each), "default_pool": "large", "models": {"auto": {"policy": "main"}}}
    settings |= {"policies": {"main": {"otherwise": {"strategy": "pair"}}}, "strategies": {"pair": pair}}
    settings |= {"controllers": {"load": {}} if controlled else {}}
    config, manifest = Config.model_validate(settings), bundle.read_manifest(bundle.default_bundle())
    strategies, unfit = registry.compile_all(config, manifest)
    plans, wrong = plan.build(config.pools, config.default_pool, config.policies, strategies)
    assert not unfit + wrong, unfit + wrong
    controllers, rng = ControllerState(b"simulation"), random.Random(seed)
    controllers.configure(config.pools, config.controllers, config.strategies)
    controllers.follow(strategies)
    requests: list[Request] = []
    now, scrape_at = 0.0, 0.0
    while now < UNTIL:
        now += rng.expovariate(burst if BEGIN <= now < END else QUIET)
        while scrape_at <= now:
            for name, pool in pools.items():
                pool.advance(scrape_at)
                controllers.observe(name, pool.load(), scrape_at)
            controllers.conditions(scrape_at)  # takes the snapshot that requests see
            scrape_at += INTERVAL_SECONDS
        difficulty = float(np.interp(100 * rng.random(), np.arange(101), manifest.difficulty.quantiles))
        prompt, answer = (int(rng.lognormvariate(math.log(m), SPREAD)) + 1 for m in (PROMPT, ANSWER))
        context = read_context(f"r{len(requests)}", difficulty, prompt)
        context = dataclasses.replace(context, conditions=controllers.conditions(now))
        decision = plans["main"].decide_now(context)
        assert decision is not None
        controllers.decided(context, decision, "", now)
        requests.append(Request(now, difficulty, prompt, answer, decision.pool))
        pools[decision.pool].take(requests[-1])
    for pool in pools.values():
        pool.advance(now + 100_000.0)
    return requests


def summary(requests: Sequence[Request]) -> Figures:
    """Latency, expected share of sufficient answers, and share of the strong pool."""
    seconds = [each.finished - each.arrived for each in requests]
    times = {f"p{q}_seconds": round(float(np.percentile(seconds, q)), 2) for q in (50, 95, 99)}
    strong = [each.pool == "large" for each in requests]
    insufficient = [0.0 if each.pool == "large" else each.difficulty for each in requests]
    quality, share = 1.0 - float(np.mean(insufficient)), float(np.mean(strong))
    quantities = {"quality": round(quality, 4), "strong_share": round(share, 4)}
    return {"requests": float(len(requests)), **times, **quantities}


def bins(requests: Sequence[Request], begin: float, end: float, seconds: float) -> dict[float, Figures]:
    """Beginning to summary of each bin of time."""
    found: dict[float, list[Request]] = {}
    for request in requests:
        if begin <= request.arrived < end:
            found.setdefault(request.arrived // seconds * seconds, []).append(request)
    return {start: summary(each) for start, each in found.items()}


def figures(requests: Sequence[Request]) -> Figures:
    """The burst in numbers, and how long the strong share took to return."""
    after = bins(requests, END, math.inf, 30.0)
    back = (start for start, row in after.items() if row["strong_share"] >= SHARE - 0.05)
    burst = summary([each for each in requests if BEGIN <= each.arrived < END])
    return {**burst, "return_seconds": round(next(back, math.inf) - END, 1)}


def scenario(name: str, burst: float) -> dict[str, Any]:
    """The report of one burst."""
    times = {"begin": BEGIN, "end": END, "until": UNTIL}
    report: dict[str, Any] = {"name": name, "quiet": QUIET, "burst": burst, **times}
    for label, controlled in (("without", False), ("with", True)):
        requests = simulate(burst, controlled)
        rows = bins(requests, 0.0, UNTIL, BIN_SECONDS)
        curves = {key: [row[key] for row in rows.values()] for key in CURVES}
        report[label] = {"burst": figures(requests), "curves": {"seconds": list(rows), **curves}}
    return report


if __name__ == "__main__":
    scenarios = [scenario(*each) for each in BURSTS.items()]
    click.echo(json.dumps({"schema": 1, "seed": SEED, "strong_share": SHARE, "scenarios": scenarios}))

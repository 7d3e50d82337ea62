"""The load controller in front of two simulated pools, through a burst, with and without.

The controller, the policy and the strategy are the server's; the pools and the traffic are simulated.
Declared assumptions, none of them measured:

- A pool batches continuously: up to `slots` requests decode one token per step, a step takes
  `step_seconds + step_seconds_per_request * running`, and `PREFILL_TOKENS` of a prompt are read per step.
  A request is admitted when there is a slot and room in the KV cache for its prompt and its answer; until
  then it waits, first come, first served. This is vLLM's shape, not its speed.
- Difficulties are drawn from the shipped bundle's reference traffic (its quantiles), and calibration is
  assumed to be exact: an answer of the weak pool is insufficient with the request's difficulty as its
  probability. Quality is one minus the mean of that over all requests.
- Prompts and answers have log-normal lengths, arrivals are Poisson.

    python -m semroute_bench.load_simulation --out benchmarks/results --plot docs/load_simulation.svg
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from semroute_bench.sidecar import facts
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.policy import plan
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.pool_metrics import INTERVAL_SECONDS
from semroute_extproc.strategies import registry

SHARE = 0.4  # the configured strong share
PREFILL_TOKENS = 512  # tokens of a prompt that are read in one step
PROMPT_MEDIAN, ANSWER_MEDIAN, SPREAD = 300.0, 250.0, 0.6  # median tokens, deviation of their logarithm
BIN_SECONDS = 10.0  # width of the bins of the curves

CURVES = {"strong_share": "strong share", "p95_seconds": "95 % latency, s", "quality": "quality"}
"""Key to the label of its axis."""


@dataclass(frozen=True)
class Scenario:
    """Traffic: requests per second before, during and after a burst."""

    name: str
    quiet: float
    burst: float
    begin: float = 300.0
    end: float = 600.0
    until: float = 1_200.0


SCENARIOS = (
    Scenario("strong pool overrun", 6.0, 16.0),
    Scenario("both pools overrun", 6.0, 30.0),
)


@dataclass
class Request:
    """One request, its pool and its time."""

    arrived: float
    difficulty: float
    prompt: int
    answer: int
    pool: str = ""
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
        return {
            "running": float(len(self.running)),
            "waiting": float(len(self.waiting)),
            "kv_cache_usage": min(self.cached / self.cache_tokens, 1.0),
        }

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


def make_pools() -> dict[str, Pool]:
    """The weak pool holds four times as much as the strong one."""
    return {
        "small": Pool(128, 400_000, 0.008, 0.0001),
        "large": Pool(64, 100_000, 0.020, 0.0004),
    }


def configuration(controlled: bool) -> Config:
    """A pair, with the controller's defaults or without a controller."""
    pair = {"kind": "threshold", "weak": "small", "strong": "large", "strong_share": SHARE}
    return Config.model_validate(
        {
            "pools": {
                name: {"cluster": name, "model": name, "metrics": f"http://{name}/metrics"}
                for name in make_pools()
            },
            "default_pool": "large",
            "models": {"auto": {"policy": "main"}},
            "policies": {"main": {"otherwise": {"strategy": "pair"}}},
            "strategies": {"pair": pair},
            "controllers": {"load": {}} if controlled else {},
        }
    )


def simulate(scenario: Scenario, config: Config, seed: int) -> list[Request]:
    """Every request, with its pool and its time."""
    rng = random.Random(seed)
    manifest = bundle.read_manifest(bundle.default_bundle())
    strategies, unfit = registry.compile_all(config, manifest)
    plans, wrong = plan.build(config.pools, config.default_pool, config.policies, strategies)
    assert not unfit + wrong, unfit + wrong
    controllers, pools = ControllerState(b"simulation"), make_pools()
    controllers.configure(config.pools, config.controllers, config.strategies)
    requests: list[Request] = []
    now, scrape_at = 0.0, 0.0
    while now < scenario.until:
        arrival = now + rng.expovariate(
            scenario.burst if scenario.begin <= now < scenario.end else scenario.quiet
        )
        while scrape_at <= arrival:
            for name, pool in pools.items():
                pool.advance(scrape_at)
                controllers.observe(name, pool.load(), scrape_at)
            controllers.conditions(scrape_at)  # takes the snapshot that requests see
            scrape_at += INTERVAL_SECONDS
        now = arrival
        request = Request(
            arrived=now,
            difficulty=float(np.interp(100 * rng.random(), np.arange(101), manifest.difficulty.quantiles)),
            prompt=int(rng.lognormvariate(math.log(PROMPT_MEDIAN), SPREAD)) + 1,
            answer=int(rng.lognormvariate(math.log(ANSWER_MEDIAN), SPREAD)) + 1,
        )
        known = facts(f"r{len(requests)}", request.difficulty, request.prompt)
        known = dataclasses.replace(known, conditions=controllers.conditions(now))
        decision = plans["main"].decide_now(known)
        assert decision is not None
        controllers.decided(known, decision, "", now)
        request.pool = decision.pool
        pools[request.pool].take(request)
        requests.append(request)
    for pool in pools.values():
        pool.advance(now + 100_000.0)
    return requests


def summary(requests: Sequence[Request]) -> dict[str, float]:
    """Latency, expected share of sufficient answers, and share of the strong pool."""
    p50, p95, p99 = np.percentile([each.finished - each.arrived for each in requests], (50, 95, 99))
    insufficient = [0.0 if each.pool == "large" else each.difficulty for each in requests]
    return {
        "requests": float(len(requests)),
        "p50_seconds": round(float(p50), 2),
        "p95_seconds": round(float(p95), 2),
        "p99_seconds": round(float(p99), 2),
        "quality": round(1.0 - float(np.mean(insufficient)), 4),
        "strong_share": round(float(np.mean([each.pool == "large" for each in requests])), 4),
    }


def bins(
    requests: Sequence[Request], begin: float, end: float, seconds: float
) -> dict[float, dict[str, float]]:
    """Beginning to summary of each bin of time."""
    found: dict[float, list[Request]] = {}
    for request in requests:
        if begin <= request.arrived < end:
            found.setdefault(request.arrived // seconds * seconds, []).append(request)
    return {start: summary(each) for start, each in found.items()}


def figures(scenario: Scenario, requests: Sequence[Request]) -> dict[str, float]:
    """The burst in numbers, and how long the strong share took to return."""
    after = bins(requests, scenario.end, math.inf, 30.0)
    back = (start for start, row in after.items() if row["strong_share"] >= SHARE - 0.05)
    burst = summary([each for each in requests if scenario.begin <= each.arrived < scenario.end])
    return {**burst, "return_seconds": round(next(back, math.inf) - scenario.end, 1)}


def plot(report: dict[str, Any], path: Path) -> None:
    """Strong share, tail latency and quality over time, one column per scenario."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "semroute"
    scenarios = report["scenarios"]
    figure = Figure(figsize=(11, 7.5), layout="tight")
    axes = figure.subplots(len(CURVES), len(scenarios), sharex=True, squeeze=False)
    for column, scenario in enumerate(scenarios):
        for axis, (key, label) in zip(axes[:, column], CURVES.items(), strict=True):
            axis.axvspan(scenario["begin"], scenario["end"], color="0.92", linewidth=0)
            for name, color in (("without", "tab:red"), ("with", "tab:blue")):
                data = scenario[name]["curves"]
                axis.plot(data["seconds"], data[key], color=color, linewidth=1.3, label=f"{name} controller")
            axis.set_yscale("log" if key == "p95_seconds" else "linear")
            axis.set_ylabel("" if column else label)
            axis.grid(alpha=0.3)
        title = f"{scenario['name']}: {scenario['quiet']:g} to {scenario['burst']:g} requests per second"
        axes[0][column].set_title(title)
        axes[-1][column].set_xlabel("seconds")
    axes[0][0].legend(loc="lower right", fontsize="small")
    figure.savefig(path, metadata={"Date": None})


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--seed", default=1)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for load_simulation.json.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="File for the curves: .svg or .png.")
def main(seed: int, out: Path | None, picture: Path | None) -> None:
    """Simulate, print, write."""
    report: dict[str, Any] = {"schema": 1, "seed": seed, "strong_share": SHARE, "scenarios": []}
    for scenario in SCENARIOS:
        entry: dict[str, Any] = dict(vars(scenario))
        for name, controlled in (("without", False), ("with", True)):
            requests = simulate(scenario, configuration(controlled), seed)
            burst, rows = figures(scenario, requests), bins(requests, 0.0, scenario.until, BIN_SECONDS)
            curves = {key: [row[key] for row in rows.values()] for key in CURVES}
            entry[name] = {"burst": burst, "curves": {"seconds": list(rows), **curves}}
            click.echo(f"{scenario.name}, {name}: {burst}")
        report["scenarios"].append(entry)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "load_simulation.json").write_text(json.dumps(report) + "\n")
    if picture:
        plot(report, picture)


if __name__ == "__main__":
    main()

"""The load controller in front of two simulated pools, through a burst, with and without.

The controller, the policy and the strategy are the server's own; what is simulated is the pools and
the traffic. Declared assumptions, none of them measured:

- A pool batches continuously: up to `slots` requests decode one token a step, a step takes
  `step_seconds + step_seconds_per_request * running`, prompts are read `PREFILL_TOKENS` a step. A
  request is let in when there is a slot and room in the KV cache for its prompt and its answer; until
  then it waits, first come, first served. This is vLLM's shape, not its speed.
- Difficulties are drawn from the shipped bundle's reference traffic (its quantiles), and calibration
  is taken at its word: an answer of the weak pool falls short with the request's difficulty as its
  probability. Quality is one minus the mean of that over all requests.
- Prompts and answers have log-normal lengths, arrivals are Poisson.

    python benchmarks/load_simulation.py --out benchmarks/results --plot docs/load_simulation.svg
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy import plan as policy
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.state.controllers import Controllers
from semroute_extproc.state.pool_metrics import INTERVAL_SECONDS
from semroute_extproc.strategies.registry import compile_all

SHARE = 0.4
"""The strong share that is configured."""

PREFILL_TOKENS = 512
"""Tokens of a prompt that are read in one step."""

PROMPT_MEDIAN, ANSWER_MEDIAN, SPREAD = 300.0, 250.0, 0.6
"""Median tokens, and the standard deviation of their logarithm."""

BIN_SECONDS = 10.0
"""Width of the bins of the curves."""


@dataclass(frozen=True)
class Scenario:
    """Traffic: requests a second before, during and after a burst."""

    name: str
    quiet: float
    burst: float
    begin: float = 300.0
    end: float = 600.0
    until: float = 1_200.0

    def rate(self, now: float) -> float:
        """Requests a second at a time."""
        return self.burst if self.begin <= now < self.end else self.quiet


SCENARIOS = (
    Scenario("strong pool overrun", 6.0, 16.0),
    Scenario("both pools overrun", 6.0, 30.0),
)


@dataclass
class Request:
    """One request and what became of it."""

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
    _steps: float = 0.0
    """Steps so far; a request is done when they reach its own."""
    _running: list[tuple[float, int, Request]] = field(default_factory=list)
    _cached: int = 0
    _count: int = 0

    def take(self, request: Request) -> None:
        """A request arrives now."""
        self.waiting.append(request)
        self._admit()

    def advance(self, now: float) -> None:
        """Let time pass; requests that are done leave, waiting ones enter."""
        while self._running:
            seconds = self.step_seconds + self.step_seconds_per_request * len(self._running)
            done_at = self.now + (self._running[0][0] - self._steps) * seconds
            if done_at > now:
                self._steps += (now - self.now) / seconds
                break
            self._steps, self.now = self._running[0][0], done_at
            _, _, request = heapq.heappop(self._running)
            request.finished = done_at
            self._cached -= request.prompt + request.answer
            self._admit()
        self.now = now

    def load(self) -> dict[str, float]:
        """What vLLM's gauges would say."""
        return {
            "running": float(len(self._running)),
            "waiting": float(len(self.waiting)),
            "kv_cache_usage": min(self._cached / self.cache_tokens, 1.0),
        }

    def _admit(self) -> None:
        while self.waiting and len(self._running) < self.slots:
            request = self.waiting[0]
            tokens = request.prompt + request.answer
            if self._cached + tokens > self.cache_tokens and self._running:
                return
            self.waiting.popleft()
            self._cached += tokens
            self._count += 1
            steps = self._steps + request.answer + request.prompt / PREFILL_TOKENS
            heapq.heappush(self._running, (steps, self._count, request))


def make_pools() -> dict[str, Pool]:
    """The weak pool holds four times what the strong one does."""
    return {
        "small": Pool(128, 400_000, 0.008, 0.0001),
        "large": Pool(64, 100_000, 0.020, 0.0004),
    }


def configuration(controlled: bool, **load: Any) -> Config:
    """A pair, with the controller's defaults or without."""
    pools = {
        name: {"cluster": name, "model": name, "metrics": f"http://{name}/metrics"} for name in make_pools()
    }
    return Config.model_validate(
        {
            "pools": pools,
            "default_pool": "large",
            "models": {"auto": {"policy": "main"}},
            "policies": {"main": {"otherwise": {"strategy": "pair"}}},
            "strategies": {
                "pair": {"kind": "threshold", "weak": "small", "strong": "large", "strong_share": SHARE}
            },
            "controllers": {"load": load} if controlled else {},
        }
    )


def simulate(scenario: Scenario, config: Config, seed: int) -> tuple[list[Request], list[tuple[float, ...]]]:
    """Every request, and at each look at the gauges: time, pressures weak and strong, waiting likewise."""
    rng = random.Random(seed)
    manifest = bundle.load(bundle.default_bundle(), ("cpu",)).manifest
    strategies, problems = compile_all(config, manifest)
    policies, wrong = policy.build(config.pools, config.default_pool, config.policies, strategies)
    assert not problems + wrong, problems + wrong
    controllers = Controllers(config, b"simulation")
    pools = make_pools()
    requests: list[Request] = []
    looks: list[tuple[float, ...]] = []
    quantiles = manifest.difficulty.quantiles
    now, look_at = 0.0, 0.0
    while now < scenario.until:
        arrival = now + rng.expovariate(scenario.rate(now))
        while look_at <= arrival:
            for name, pool in pools.items():
                pool.advance(look_at)
                controllers.observe(name, pool.load(), look_at)
            pressure = controllers.conditions(look_at).pressure
            looks.append(
                (
                    look_at,
                    *(pressure.get(name, 0.0) for name in pools),
                    *(float(len(pool.waiting)) for pool in pools.values()),
                )
            )
            look_at += INTERVAL_SECONDS
        now = arrival
        request = Request(
            arrived=now,
            difficulty=float(np.interp(100 * rng.random(), np.arange(101), quantiles)),
            prompt=int(rng.lognormvariate(math.log(PROMPT_MEDIAN), SPREAD)) + 1,
            answer=int(rng.lognormvariate(math.log(ANSWER_MEDIAN), SPREAD)) + 1,
        )
        facts = facts_of(request, len(requests), controllers, now)
        decision = policies["main"].decide(facts)
        assert decision is not None
        controllers.decided(facts, decision, "", now)
        request.pool = decision.pool
        pools[request.pool].advance(now)
        pools[request.pool].take(request)
        requests.append(request)
    for pool in pools.values():
        pool.advance(now + 100_000.0)
    return requests, looks


def facts_of(request: Request, number: int, controllers: Controllers, now: float) -> RoutingContext:
    """What the policy would know of a request."""
    signals = Signals(
        domain="other",
        domain_probs={"other": 1.0},
        domain_entropy=0.0,
        difficulty=request.difficulty,
        unknown=False,
        tokens=request.prompt,
        truncated=False,
        language="en",
        task="",
        task_probs={},
    )
    return RoutingContext(
        head=RequestHead("POST", "/v1/chat/completions", {"x-request-id": f"r{number}"}),
        view=RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", "hi"),)),
        language="en",
        prompt_tokens=request.prompt,
        signals=signals,
        conditions=controllers.conditions(now),
    )


def curves(scenario: Scenario, requests: list[Request], looks: list[tuple[float, ...]]) -> dict[str, Any]:
    """Bins over time: strong share, 95th percentile of latency, quality; and the looks at the gauges."""
    edges = np.arange(0.0, scenario.until + BIN_SECONDS, BIN_SECONDS)
    arrived = np.array([request.arrived for request in requests])
    strong = np.array([request.pool == "large" for request in requests], dtype=float)
    latency = np.array([request.finished - request.arrived for request in requests])
    short = np.array([0.0 if request.pool == "large" else request.difficulty for request in requests])
    bins = np.digitize(arrived, edges) - 1
    rows: dict[str, list[float]] = {"seconds": [], "strong_share": [], "p95_seconds": [], "quality": []}
    for number in range(len(edges) - 1):
        inside = bins == number
        if not inside.any():
            continue
        rows["seconds"].append(float(edges[number]))
        rows["strong_share"].append(round(float(strong[inside].mean()), 4))
        rows["p95_seconds"].append(round(float(np.percentile(latency[inside], 95)), 3))
        rows["quality"].append(round(1.0 - float(short[inside].mean()), 4))
    # Every fifth look: ten seconds, as the bins.
    rows["pressure_weak"], rows["pressure_strong"], rows["waiting_weak"], rows["waiting_strong"] = (
        [round(look[column], 3) for look in looks[::5]] for column in (1, 2, 3, 4)
    )
    return rows


def figures(scenario: Scenario, requests: list[Request]) -> dict[str, float]:
    """The burst in numbers, and how long the strong share took to come back."""
    burst = [r for r in requests if scenario.begin <= r.arrived < scenario.end]
    latencies = [r.finished - r.arrived for r in burst]
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    settled = [r for r in burst if r.arrived >= scenario.begin + 60.0]
    shares = block_shares(settled, 30.0)
    after = [r for r in requests if r.arrived >= scenario.end]
    back = next(
        (start for start, share in block_shares(after, 30.0) if share >= SHARE - 0.05),
        math.inf,
    )
    return {
        "requests": float(len(burst)),
        "p50_seconds": round(float(p50), 2),
        "p95_seconds": round(float(p95), 2),
        "p99_seconds": round(float(p99), 2),
        "quality": round(
            1.0 - float(np.mean([0.0 if r.pool == "large" else r.difficulty for r in burst])), 4
        ),
        "strong_share": round(float(np.mean([r.pool == "large" for r in burst])), 4),
        "strong_share_swing": round(float(np.std([share for _, share in shares])), 4),
        "return_seconds": round(back - scenario.end, 1),
    }


def block_shares(requests: list[Request], seconds: float) -> list[tuple[float, float]]:
    """Beginning and strong share of each block of time."""
    blocks: dict[int, list[bool]] = {}
    for request in requests:
        blocks.setdefault(int(request.arrived // seconds), []).append(request.pool == "large")
    return [(number * seconds, sum(found) / len(found)) for number, found in sorted(blocks.items())]


def plot(report: dict[str, Any], path: Path) -> None:
    """Strong share, tail latency and quality over time, one column a scenario."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "semroute"
    scenarios = report["scenarios"]
    rows = (
        ("strong_share", "strong share"),
        ("p95_seconds", "95 % latency, s"),
        ("quality", "quality"),
    )
    figure, axes = plt.subplots(len(rows), len(scenarios), figsize=(11, 7.5), sharex=True, squeeze=False)
    for column, scenario in enumerate(scenarios):
        for row, (key, label) in enumerate(rows):
            axis = axes[row][column]
            axis.axvspan(scenario["begin"], scenario["end"], color="0.92", linewidth=0)
            for name, colour in (("without", "tab:red"), ("with", "tab:blue")):
                data = scenario[name]["curves"]
                axis.plot(data["seconds"], data[key], color=colour, linewidth=1.3, label=f"{name} controller")
            if key == "p95_seconds":
                axis.set_yscale("log")
            if column == 0:
                axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[0][column].set_title(
            f"{scenario['name']}: {scenario['quiet']:g} to {scenario['burst']:g} requests a second"
        )
        axes[-1][column].set_xlabel("seconds")
    axes[0][0].legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for load_simulation.json")
    parser.add_argument("--plot", type=Path, help="file for the curves: .svg or .png")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"schema": 1, "seed": arguments.seed, "strong_share": SHARE, "scenarios": []}
    for scenario in SCENARIOS:
        entry: dict[str, Any] = {
            key: getattr(scenario, key) for key in ("name", "quiet", "burst", "begin", "end", "until")
        }
        for name, controlled in (("without", False), ("with", True)):
            requests, looks = simulate(scenario, configuration(controlled), arguments.seed)
            entry[name] = {
                "burst": figures(scenario, requests),
                "curves": curves(scenario, requests, looks),
            }
            print(f"{scenario.name}, {name}: {entry[name]['burst']}")
        report["scenarios"].append(entry)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "load_simulation.json").write_text(json.dumps(report) + "\n")
    if arguments.plot:
        plot(report, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

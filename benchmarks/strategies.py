"""What each strategy's choice costs: microseconds of CPU, beyond the encoder.

Artifacts are made up, of the sizes that matter, and the strategies are the live path's own, built by
`registry.compile_all`. Choices are made in turn, one per strategy and round, so that a noisy moment falls on
all alike, and the process's own CPU time is read around each. The judge's endpoint is a process of its
own on this machine, which answers at once: what is measured is our side of a question.

    python benchmarks/strategies.py --rounds 300 --out benchmarks/results
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # what a decision costs, not how it is spread over cores

import argparse
import asyncio
import dataclasses
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from aiohttp import web
from rich.console import Console
from rich.table import Table
from semroute_bench import machine

from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.constraints import candidates
from semroute_extproc.policy.context import Candidates, Decision, RoutingContext, Strategy
from semroute_extproc.policy.stickiness import holding, keeps
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.state.controllers import Controllers
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.factorization import FactorizationArtifact
from semroute_extproc.strategies.judge import JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_extproc.strategies.profiles import Profile
from semroute_extproc.strategies.registry import Files, compile_all
from semroute_extproc.strategies.similarity import SimilarityArtifact

D = 384
WARM_UP = 10
"""Rounds before those that count."""

JUDGE = "judge, asked of a local endpoint"
REMEMBERED = "judge, answer from its cache"
SESSION = "threshold, with a session's lookup"

QUESTION_SECONDS = 5.0
"""How long the judge may take: long enough for a busy machine."""

QUANTILES = tuple(np.linspace(0.0, 1.0, 101).tolist())
RNG = np.random.default_rng(0)

SIMILARITIES = {
    "similarity, 1,500 prompts": (1_500, None, 0),
    "similarity, 10,000 prompts": (10_000, None, 0),
    "similarity, 50,000 prompts on 64 axes": (50_000, 64, 0),
    "similarity, 50,000 prompts on 64 axes, 200 nearest": (50_000, 64, 200),
    "similarity, 50,000 prompts": (50_000, None, 0),
}
"""Rows: stored prompts, axes (None for all 384), neighbours (0 for all)."""


def rows(n: int, d: int) -> Any:
    """Random directions (n, d)."""
    x = RNG.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def manifest(kind: Any, own: bundle.Manifest) -> ArtifactManifest:
    """That of an artifact fitted on the shipped bundle."""
    return ArtifactManifest(kind=kind, bundle=own.name, revision=own.revision, dimensions=D, rows=0)


def build(own: bundle.Manifest, judge_url: str) -> tuple[Config, Files, dict[str, str]]:
    """A configuration with every strategy, what their files would hold, and their names in the table."""
    pools = {
        name: {"cluster": name, "model": name, "price": {"input": price, "output": price}}
        for name, price in (("small", 0.1), ("middle", 0.4), ("large", 1.0))
    }
    pair = {"weak": "small", "strong": "large", "strong_share": 0.3}
    strategies: dict[str, dict[str, Any]] = {
        "weighted": {"kind": "weighted", "weights": {"small": 70, "large": 30}},
        "threshold": {"kind": "threshold", **pair},
        "intent": {
            "kind": "intent",
            "experts": {own.domain.labels[0]: "small"},
            "otherwise": "large",
            "on_unknown": "large",
        },
        "factorization": {"kind": "factorization", **pair, "artifact": "x"},
        "clusters, 5 x 20, 3 pools": {"kind": "clusters", "artifact": "x", "profiles": "x"},
        "clusters, learned map of 20, 3 pools": {"kind": "clusters", "artifact": "x", "profiles": "x"},
        "judge": {
            "kind": "judge",
            "weak": "small",
            "strong": "large",
            "url": judge_url,
            "model": "judge",
            "threshold": 0.5,
            "timeout_ms": 1e3 * QUESTION_SECONDS,
        },
    }
    artifacts: dict[str, Any] = {}
    for name, (n, axes, neighbours) in SIMILARITIES.items():
        strategies[name] = {"kind": "similarity", **pair, "artifact": "x"}
        wins = RNG.random(n).astype(np.float32)
        basis = None if axes is None else rows(axes, D)
        stored = rows(n, axes or D)
        artifacts[name] = SimilarityArtifact(
            manifest("similarity", own), stored, basis, wins, 10.0, neighbours, QUANTILES
        )
    artifacts["factorization"] = FactorizationArtifact(
        manifest("factorization", own),
        ("large", "small"),
        rows(2, 32),
        rows(32, D),
        rows(1, 32)[0],
        QUANTILES,
    )
    names = tuple(map(str, range(100)))
    hard = ClustersArtifact(manifest("clusters", own), rows(100, D), None, names, 5)
    soft = ClustersArtifact(
        manifest("clusters", own), rows(20, D), np.zeros(20, dtype=np.float32), names[:20]
    )
    profiles = {}
    for name, artifact in (
        ("clusters, 5 x 20, 3 pools", hard),
        ("clusters, learned map of 20, 3 pools", soft),
    ):
        artifacts[name] = artifact
        k = len(artifact.centroids)
        known = {
            pool: Profile(model=pool, clusters=artifact.digest, answers=(9.0,) * k, errors=(3.0,) * k)
            for pool in pools
        }
        profiles[name] = lambda known=known: known
    # Names in a configuration are plainer than those of the table.
    named = {slug(name): settings for name, settings in strategies.items()}
    config = Config.model_validate(
        {
            "server": {"deadline_ms": 1e3 * QUESTION_SECONDS + 1},
            "pools": pools,
            "default_pool": "large",
            "strategies": named,
            "controllers": {"session": {}},
        }
    )
    files = {
        slug(name): {"artifact": each, "profiles": profiles.get(name)} for name, each in artifacts.items()
    }
    return config, files, {slug(name): name for name in strategies}


def slug(name: str) -> str:
    """A strategy's name for a row of the table."""
    return re.sub("[^A-Za-z0-9]+", "-", name)


def facts(own: bundle.Manifest, x: Any) -> RoutingContext:
    """A request whose text was read."""
    labels = own.domain.labels
    signals = Signals(
        domain=labels[0],
        domain_probs=dict.fromkeys(labels, 1.0 / len(labels)),
        domain_entropy=0.2,
        difficulty=0.4,
        unknown=False,
        tokens=60,
        truncated=False,
        language="en",
        neighbours=x,
        revision=own.revision,
    )
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", TURNS)
    head = RequestHead("POST", "/", {"x-request-id": str(RNG.integers(1 << 60))})
    return RoutingContext(head, view, "en", 300, signals=signals)


TURNS = tuple(
    Turn(role, f"Turn {number} of a conversation. " * 10)
    for number, role in enumerate(("system", "user", "assistant", "user"))
)


def serve(found: Connection) -> None:
    """An OpenAI-compatible endpoint that gives every question the same label; in a process of its own."""
    top = [{"token": str(label), "logprob": -1.6, "bytes": None} for label in range(1, 6)]
    content = [{"token": "1", "logprob": -1.6, "top_logprobs": top}]
    message = {"role": "assistant", "content": "1"}
    answer = json.dumps({"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]})

    async def chat(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text=answer, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.send(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await asyncio.Event().wait()

    asyncio.run(run())


Row = Callable[[RoutingContext, int], Any]
"""Makes one choice for some facts in a round, or gives the coroutine that does."""


def choosing(strategy: Strategy, among: Candidates) -> Row:
    """A choice of a strategy that only looks at facts."""
    return lambda query, _: strategy.choose(query, among)


def conversing(strategy: Strategy, name: str, controllers: Controllers, among: Candidates) -> Row:
    """A choice held against the conversation's pool, as the policy does, and what is left for the next."""
    began = RequestView(Api.CHAT_COMPLETIONS, "auto", TURNS[:2])
    first = RoutingContext(RequestHead("POST", "/"), began, "en", 300)
    controllers.decided(first, Decision("small", ""), controllers.keys(first.head, began).keep, 0.0)

    def choose(query: RoutingContext, number: int) -> None:
        now = float(number)
        keys = controllers.keys(query.head, query.view)
        before = dataclasses.replace(query, held=controllers.held(keys.find, None, query.view, now))
        choice = strategy.choose(before, among)
        held = holding(before, name, "", among)
        assert held is not None
        pool = held.pool if keeps(held, choice) else choice.pool
        controllers.decided(before, Decision(pool, choice.reason, strategy=name), keys.keep, now)

    return choose


def judging(strategy: Strategy, judge: JudgeClient, among: Candidates, result: str) -> Row:
    """A question and the choice by its answer: a new text each round, or one the judge knows."""

    async def choose(query: RoutingContext, number: int) -> None:
        text = f"Question {number if result == 'ok' else 0}. " + "Why is it so? " * 20
        said = await judge.ask(text, asyncio.get_running_loop().time() + QUESTION_SECONDS)
        assert said.result == result or number == 0, said
        strategy.choose(query.with_judgement(judge.name, said), among)

    return choose


async def measure(rounds: int, judge_url: str) -> dict[str, Any]:
    """Microseconds of CPU of each strategy's choice."""
    own = bundle.read_manifest(bundle.default_bundle())
    config, files, labels = build(own, judge_url)
    strategies, problems = compile_all(config, own, files)
    assert not problems, problems
    queries = [facts(own, x) for x in rows(64, D)]
    among = candidates(config.pools, config.default_pool, queries[0])
    table = {labels[name]: choosing(each, among) for name, each in strategies.items() if name != "judge"}
    threshold, settings = strategies["threshold"], config.strategies["judge"]
    assert isinstance(settings, JudgeSettings)
    table[SESSION] = conversing(threshold, "threshold", Controllers(config, b"key"), among)
    judges = {JUDGE: JudgeClient("judge", settings), REMEMBERED: JudgeClient("judge", settings)}
    for label, result in ((JUDGE, "ok"), (REMEMBERED, "cache")):
        table[label] = judging(strategies["judge"], judges[label], among, result)
    times: dict[str, list[float]] = {label: [] for label in table}
    load = machine.describe()
    for number in range(rounds + WARM_UP):
        query = queries[number % len(queries)]
        for label, row in table.items():
            before = time.process_time_ns()
            done = row(query, number)
            if isinstance(done, Awaitable):
                await done
            took = (time.process_time_ns() - before) / 1e3
            if number >= WARM_UP:
                times[label].append(took)
    for judge in judges.values():
        await judge.close()
    return {
        "schema": 1,
        "machine": load,
        "dimensions": D,
        "rounds": rounds,
        "cpu_us": {
            label: {
                "p50": statistics.median(values),
                "p90": statistics.quantiles(values, n=10, method="inclusive")[8],
            }
            for label, values in times.items()
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, help="folder for strategies.json")
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    # Spawned: a fork would copy this process's threads' locks.
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        report = uvloop.run(measure(arguments.rounds, ours.recv()))
    finally:
        server.terminate()
        server.join()
    shown = Table(title=f"A strategy's choice, {report['dimensions']} dimensions, {report['rounds']} rounds")
    for column in ("strategy", "p50 µs", "p90 µs"):
        shown.add_column(column, justify="left" if column == "strategy" else "right")
    for name, row in report["cpu_us"].items():
        shown.add_row(name, f"{row['p50']:.0f}", f"{row['p90']:.0f}")
    Console().print(shown)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "strategies.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

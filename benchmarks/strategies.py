"""What each strategy's choice costs: microseconds of CPU, beyond the encoder.

Artefacts are made up, of the sizes that matter, and the strategies are the live path's own, built by
`policy.build`. Choices are made in turn, one of each strategy a round, so that a noisy moment falls on
all alike, and the process's own CPU time is read around each.

    python benchmarks/strategies.py --rounds 300 --out benchmarks/results
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # what a decision costs, not how it is spread over cores

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from overhead import machine
from rich.console import Console
from rich.table import Table

from semroute_extproc import bundle, policy
from semroute_extproc.artefacts import Clusters, Factorization, Manifest, Similarity
from semroute_extproc.config import Config
from semroute_extproc.policy.constraints import candidates
from semroute_extproc.policy.decision import Facts
from semroute_extproc.policy.strategies import Material, compile_strategies
from semroute_extproc.profiles import Profile
from semroute_extproc.request import Api, RequestHead, RequestView
from semroute_extproc.signals import Signals

D = 384
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


def manifest(kind: Any, own: bundle.Manifest) -> Manifest:
    """That of an artefact fitted on the shipped bundle."""
    return Manifest(kind=kind, bundle=own.name, revision=own.revision, dimensions=D, rows=0)


def build(own: bundle.Manifest) -> tuple[Config, Material, dict[str, str]]:
    """A configuration with every strategy, what their files would hold, and their names in the table."""
    pools = {
        name: {"cluster": name, "model": name, "price": {"input": price, "output": price}}
        for name, price in (("small", 0.1), ("middle", 0.4), ("large", 1.0))
    }
    pair = {"weak": "small", "strong": "large", "strong_share": 0.3}
    strategies: dict[str, dict[str, Any]] = {
        "fixed": {"kind": "fixed", "pool": "small"},
        "threshold": {"kind": "threshold", **pair},
        "intent": {
            "kind": "intent",
            "experts": {own.domain.labels[0]: "small"},
            "otherwise": "large",
            "unsure": "large",
        },
        "factorization": {"kind": "factorization", **pair, "artefact": "x"},
        "clusters, 5 x 20, 3 pools": {"kind": "clusters", "artefact": "x", "profiles": "x"},
        "clusters, learned map of 20, 3 pools": {"kind": "clusters", "artefact": "x", "profiles": "x"},
    }
    artefacts: dict[str, Any] = {}
    for name, (n, axes, neighbours) in SIMILARITIES.items():
        strategies[name] = {"kind": "similarity", **pair, "artefact": "x"}
        wins = RNG.random(n).astype(np.float32)
        basis = None if axes is None else rows(axes, D)
        stored = rows(n, axes or D)
        artefacts[name] = Similarity(
            manifest("similarity", own), stored, basis, wins, 10.0, neighbours, QUANTILES
        )
    artefacts["factorization"] = Factorization(
        manifest("factorization", own),
        ("large", "small"),
        rows(2, 32),
        rows(32, D),
        rows(1, 32)[0],
        QUANTILES,
    )
    names = tuple(map(str, range(100)))
    hard = Clusters(manifest("clusters", own), rows(100, D), None, names, 5)
    soft = Clusters(manifest("clusters", own), rows(20, D), np.zeros(20, dtype=np.float32), names[:20])
    profiles = {}
    for name, artefact in (
        ("clusters, 5 x 20, 3 pools", hard),
        ("clusters, learned map of 20, 3 pools", soft),
    ):
        artefacts[name] = artefact
        k = len(artefact.centroids)
        known = {
            pool: Profile(model=pool, clusters=artefact.digest, answers=(9.0,) * k, errors=(3.0,) * k)
            for pool in pools
        }
        profiles[name] = lambda known=known: known
    # Names in a configuration are plainer than those of the table.
    named = {slug(name): settings for name, settings in strategies.items()}
    config = Config.model_validate({"pools": pools, "default_pool": "large", "strategies": named})
    material = Material(
        {slug(name): each for name, each in artefacts.items()},
        {},
        {slug(name): each for name, each in profiles.items()},
    )
    return config, material, {slug(name): name for name in strategies}


def slug(name: str) -> str:
    """A strategy's name for a row of the table."""
    return re.sub("[^A-Za-z0-9]+", "-", name)


def facts(own: bundle.Manifest, x: Any) -> Facts:
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
    view = RequestView(Api.CHAT_COMPLETIONS, "auto")
    return Facts(RequestHead("POST", "/"), view, "en", 300, signals=signals)


def measure(rounds: int) -> dict[str, Any]:
    """Microseconds of CPU of each strategy's choice."""
    own = bundle.read_manifest(bundle.default_bundle())
    config, material, labels = build(own)
    strategies, problems = compile_strategies(config, own, material)
    assert not problems, problems
    assert policy.build(config, own, material)[1] == []
    queries = [facts(own, x) for x in rows(64, D)]
    among = candidates(config.pools, config.default_pool, queries[0])
    times: dict[str, list[float]] = {name: [] for name in strategies}
    for number in range(rounds + 10):
        query = queries[number % len(queries)]
        for name, strategy in strategies.items():
            choose: Callable[..., Any] = strategy.choose  # type: ignore[union-attr]
            before = time.process_time_ns()
            choose(query, among)
            took = (time.process_time_ns() - before) / 1e3
            if number >= 10:
                times[name].append(took)
    return {
        "schema": 1,
        "machine": machine(),
        "dimensions": D,
        "rounds": rounds,
        "cpu_us": {
            labels[name]: {
                "p50": statistics.median(values),
                "p90": statistics.quantiles(values, n=10, method="inclusive")[8],
            }
            for name, values in times.items()
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--out", type=Path, help="folder for strategies.json")
    arguments = parser.parse_args()
    report = measure(arguments.rounds)
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

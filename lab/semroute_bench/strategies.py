"""The cost of each strategy's choice: microseconds of CPU, beyond the encoder.

Artifacts are made up, of realistic sizes; the strategies are the server's own. Each round makes one choice of
each strategy, so that a noisy moment affects all of them, and reads the process's CPU time around each. A
judge is left out: its cost is an HTTP request.

    python -m semroute_bench.strategies --rounds 300 --out benchmarks/results
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the cost of a decision, not its spread over cores

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from semroute_bench import machine
from semroute_bench.report import table_of
from semroute_bench.samples import Samples, quantiles
from semroute_bench.sidecar import facts
from semroute_extproc.config.models import Config
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.policy.constraints import candidates
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.factorization import FactorizationArtifact
from semroute_extproc.strategies.profiles import Profile
from semroute_extproc.strategies.registry import Files, compile_all
from semroute_extproc.strategies.similarity import SimilarityArtifact

D = 384
WARM_UP = 10  # rounds before those that count

QUANTILES = tuple(np.linspace(0.0, 1.0, 101).tolist())
RNG = np.random.default_rng(0)

CLUSTERS = {"5-x-20": (100, 5), "map-of-20": (20, 1)}
"""Centroids and views; with one view they are a learned map."""

SIMILARITIES = {
    "1500": (1_500, None, 0),
    "10000": (10_000, None, 0),
    "50000-on-64": (50_000, 64, 0),
    "50000-on-64-200": (50_000, 64, 200),
    "50000": (50_000, None, 0),
}
"""Stored prompts, axes (None for all 384), neighbors (0 for all)."""

ROWS = {
    "weighted": "weighted",
    "threshold": "threshold",
    "intent": "intent",
    "factorization": "factorization",
    "5-x-20": "clusters, 5 x 20, 3 pools",
    "map-of-20": "clusters, learned map of 20, 3 pools",
    "1500": "similarity, 1,500 prompts",
    "10000": "similarity, 10,000 prompts",
    "50000-on-64": "similarity, 50,000 prompts on 64 axes",
    "50000-on-64-200": "similarity, 50,000 prompts on 64 axes, 200 nearest",
    "50000": "similarity, 50,000 prompts",
}
"""Name of a strategy to its row in the table."""


def rows(n: int, d: int) -> Any:
    """Random directions (n, d)."""
    x = RNG.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def build(own: Manifest) -> tuple[Config, Files]:
    """A configuration with every strategy, and the contents of their files."""

    def manifest(kind: Any) -> ArtifactManifest:
        return ArtifactManifest(kind=kind, bundle=own.name, revision=own.revision, dimensions=D, rows=0)

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
        **{name: {"kind": "clusters", "artifact": "x", "profiles": "x"} for name in CLUSTERS},
        **{name: {"kind": "similarity", **pair, "artifact": "x"} for name in SIMILARITIES},
    }
    artifacts: dict[str, Any] = {}
    for name, (n, axes, neighbors) in SIMILARITIES.items():
        wins, basis = RNG.random(n).astype(np.float32), None if axes is None else rows(axes, D)
        stored = rows(n, axes or D)
        artifacts[name] = SimilarityArtifact(
            manifest("similarity"), stored, basis, wins, 10.0, neighbors, QUANTILES
        )
    artifacts["factorization"] = FactorizationArtifact(
        manifest("factorization"), ("large", "small"), rows(2, 32), rows(32, D), rows(1, 32)[0], QUANTILES
    )
    profiles: dict[str, Any] = {}
    for name, (k, views) in CLUSTERS.items():
        sizes = None if views > 1 else np.zeros(k, dtype=np.float32)
        found = artifacts[name] = ClustersArtifact(
            manifest("clusters"), rows(k, D), sizes, tuple(map(str, range(k))), views
        )
        known = {
            pool: Profile(model=pool, clusters=found.digest, answers=(9.0,) * k, errors=(3.0,) * k)
            for pool in pools
        }
        profiles[name] = lambda known=known: known
    settings = {"pools": pools, "default_pool": "large", "strategies": strategies}
    files = {name: {"artifact": made, "profiles": profiles.get(name)} for name, made in artifacts.items()}
    return Config.model_validate(settings), files


def measure(rounds: int) -> dict[str, Any]:
    """Microseconds of CPU of each strategy's choice."""
    load, own = machine.describe(), bundle.read_manifest(bundle.default_bundle())
    config, files = build(own)
    strategies, problems = compile_all(config, own, files)
    assert not problems, problems
    queries = [
        facts(str(number), labels=own.domain.labels, neighbours=x, revision=own.revision)
        for number, x in enumerate(rows(64, D))
    ]
    among = candidates(config.pools, config.default_pool, queries[0])
    samples = Samples()
    for number in range(WARM_UP + rounds):
        for name, strategy in strategies.items():
            before = time.process_time_ns()
            strategy.choose(queries[number % len(queries)], among)
            if number >= WARM_UP:
                samples.add(ROWS[name], (time.process_time_ns() - before) / 1e3)
    cpu = {label: quantiles(values) for label, values in samples.values.items()}
    return {
        "schema": 1,
        "machine": load,
        "dimensions": D,
        "rounds": rounds,
        "cpu_us": {label: {name: found[name] for name in ("p50", "p90")} for label, found in cpu.items()},
    }


@click.command(help=(__doc__ or "").splitlines()[0])
@click.option("--rounds", default=300)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for strategies.json.")
def main(rounds: int, out: Path | None) -> None:
    """Measure, print and write."""
    report = measure(rounds)
    title = f"A strategy's choice, {report['dimensions']} dimensions, {rounds} rounds"
    cells = ((name, row["p50"], row["p90"]) for name, row in report["cpu_us"].items())
    Console().print(table_of(title, ("strategy", "p50 µs", "p90 µs"), cells))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "strategies.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

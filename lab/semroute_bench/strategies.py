"""The cost of each strategy's choice: microseconds of CPU, beyond the encoder.

Artifacts are random, with realistic sizes; the strategies are the server's own and take turns. A judge is
left out: its cost is an HTTP request.

    python -m semroute_bench.strategies > benchmarks/results/strategies.json
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the cost of a decision, not its spread over cores

import json
import time
from typing import Any

import click
import numpy as np
from pydantic import TypeAdapter

from semroute_bench.measuring import Samples, describe, quantiles
from semroute_bench.sidecar import read_context
from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.manifest import Manifest
from semroute_extproc.policy.constraints import candidates
from semroute_extproc.policy.context import Strategy
from semroute_extproc.settings.pools import Pool, Price
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.factorization import FactorizationArtifact
from semroute_extproc.strategies.idea import Site
from semroute_extproc.strategies.profiles import Profile
from semroute_extproc.strategies.registry import StrategySetting
from semroute_extproc.strategies.similarity import SimilarityArtifact

D = 384
WARM_UP, ROUNDS = 10, 300  # rounds that do not count, and those that do
QUANTILES = tuple(np.linspace(0.0, 1.0, 101).tolist())
RNG = np.random.default_rng(0)


def rows(n: int, d: int) -> Any:
    """Random directions (n, d)."""
    x = RNG.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def build(own: Manifest, pools: dict[str, Pool]) -> dict[str, Strategy]:
    """Row of the table to strategy."""
    made: dict[str, Strategy] = {}
    settings = TypeAdapter(StrategySetting)

    def add(row: str, kind: str, files: dict[str, Any] | None = None, **more: Any) -> None:
        paths = dict.fromkeys(files or (), "x")
        idea = settings.validate_python({"kind": kind, **paths, **more})
        made[row] = idea.compile(Site(row, pools, own, files or {}, []))

    def manifest(kind: str) -> ArtifactManifest:
        return ArtifactManifest(kind=kind, bundle=own.name, revision=own.revision, dimensions=D, rows=0)

    pair: Any = {"weak": "small", "strong": "large", "strong_share": 0.3}
    add("weighted", "weighted", weights={"small": 70, "large": 30})
    add("threshold", "threshold", **pair)
    experts = {own.domain.labels[0]: "small"}
    add("intent", "intent", experts=experts, otherwise="large", on_unknown="large")
    factors = ("large", "small"), rows(2, 32), rows(32, D), rows(1, 32)[0], QUANTILES
    artifact: Any = FactorizationArtifact(manifest("factorization"), *factors)
    add("factorization", "factorization", {"artifact": artifact}, **pair)
    artifact = ClustersArtifact(manifest("clusters"), rows(100, D), None, tuple(map(str, range(100))), 5)
    counts: Any = {"clusters": artifact.digest, "answers": (9.0,) * 100, "errors": (3.0,) * 100}
    profiles = {pool: Profile(model=pool, **counts) for pool in pools}
    add("clusters, 5 x 20, 3 pools", "clusters", {"artifact": artifact, "profiles": lambda: profiles})
    for n, axes in ((1_500, D), (10_000, D), (50_000, 64), (50_000, D)):  # stored prompts on axes
        wins, basis = RNG.random(n).astype(np.float32), None if axes == D else rows(axes, D)
        artifact = SimilarityArtifact(manifest("similarity"), rows(n, axes), basis, wins, 10.0, 0, QUANTILES)
        row = f"similarity, {n:,} prompts" + (f" on {axes} axes" if axes < D else "")
        add(row, "similarity", {"artifact": artifact}, **pair)
    return made


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """Microseconds of CPU of each strategy's choice."""
    here, own = describe(), bundle.read_manifest(bundle.default_bundle())
    prices = {"small": 0.1, "middle": 0.4, "large": 1.0}.items()
    pools = {name: Pool(cluster=name, model=name, price=Price(input=p, output=p)) for name, p in prices}
    strategies = build(own, pools)
    probs = dict.fromkeys(own.domain.labels, 1.0 / len(own.domain.labels))
    read: Any = {"domain": own.domain.labels[0], "domain_probs": probs, "revision": own.revision}
    queries = [read_context(str(number), neighbors=x, **read) for number, x in enumerate(rows(64, D))]
    among, samples = candidates(pools, "large", queries[0]), Samples()
    for number in range(WARM_UP + rounds):
        for row, strategy in strategies.items():
            before = time.process_time_ns()
            strategy.choose(queries[number % len(queries)], among)
            if number >= WARM_UP:
                samples[row].append((time.process_time_ns() - before) / 1e3)
    found = {row: quantiles(values) for row, values in samples.items()}
    cpu = {row: {name: times[name] for name in ("p50", "p90")} for row, times in found.items()}
    return {"schema": 1, "machine": here, "dimensions": D, "rounds": rounds, "cpu_us": cpu}


if __name__ == "__main__":
    click.echo(json.dumps(measure(), indent=2))

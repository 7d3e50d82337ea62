"""Clusters: the pool with the lowest sum of expected error and weighted cost, among any number.

UniRoute (arXiv 2502.08773), sections 4 and 5: a prompt x belongs to clusters, Φ(x); a model is known by
its errors in each, Ψ(h); and x goes to argmin_n Φ(x) · Ψ(h_n) + λ c_n(x).

Φ is a nearest centroid or the learned softmax map. Ψ comes from a profile's counts, either shrunk to
the model's own mean, (wrong + m·mean) / (answers + m), or by Laplace's rule, (wrong + 1) / (answers + 2).
c_n(x) is the cost of this request at pool n, in units of the most expensive pool's price of a reference
request: prompt tokens and expected answer tokens at the pool's prices.

λ depends on the quality q: λ = trade · (1 − q) / q, so it is `trade` at ½. Both ends are limits: at 1 only
the error counts, at 0 only the price. A budget's bias b adds to the log-odds of q, which multiplies λ by
exp(−b). Pressure p on a pool (0..1) adds p to its cost c_n. Neither moves the ends of q.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from semroute_extproc.policy.context import Candidates, Choice, Near, RoutingContext, Strategy
from semroute_extproc.request.signals import Signals
from semroute_extproc.settings.base import FilePath, PoolName, Share
from semroute_extproc.strategies.artifact import Artifact, ArtifactFile, Floats, digest_of
from semroute_extproc.strategies.idea import Pools, Site, StrategySettings, Unfit
from semroute_extproc.strategies.profiles import CLUSTERS_MAX, Profile, Profiles

REFERENCE_PROMPT_TOKENS = 500  # of the reference request, whose price at the most expensive pool is cost 1
NEAR_MAX = 5  # clusters that are shown
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClustersArtifact(Artifact):
    """Clusters of prompts: the nearest of each clustering (K-means), or all by a learned map (`bias`)."""

    centroids: Floats  # (k, d); one clustering after the other, k / clusterings rows each
    bias: Floats | None  # (k,): softmax(centroids · x + bias), equation 8; None for K-means
    names: tuple[str, ...]  # one for each cluster, for display
    clusterings: int = 1

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with the clusters; each profile records them."""
        return digest_of(self.centroids, self.bias)

    @cached_property
    def _offset(self) -> Floats:
        """Added to centroids · x: the bias, or −|c|²/2 so that the largest value is the nearest centroid."""
        return self.bias if self.bias is not None else -(self.centroids**2).sum(axis=1) / np.float32(2.0)

    def membership(self, x: Floats) -> Floats:
        """How much each row of `x` (n, d) belongs to each cluster; (n, k), rows add up to 1."""
        scores: Floats = x @ self.centroids.T + self._offset
        if self.bias is not None:
            soft = np.exp(scores - scores.max(axis=1, keepdims=True))
            return np.asarray(soft / soft.sum(axis=1, keepdims=True), dtype=np.float32)
        runs = scores.reshape(len(x), self.clusterings, -1)
        hard = np.zeros_like(runs)
        np.put_along_axis(hard, runs.argmax(axis=2)[:, :, None], 1.0 / self.clusterings, axis=2)
        return hard.reshape(scores.shape)


def read_clusters(path: Path) -> ClustersArtifact:
    """Read a `clusters` artifact; raises ArtifactError, naming the file and what is wrong."""
    file = ArtifactFile(path, "clusters")
    centroids = file.floats("centroids", None, file.manifest.dimensions)
    k = len(centroids)
    bias = file.floats("bias", k) if "bias" in file.arrays else None
    names, clusterings = file.names("names", k), file.integer("clusterings", 1)
    if not 0 < k <= CLUSTERS_MAX:
        raise file.error(f"{k} clusters, expected 1 to {CLUSTERS_MAX}")
    if len(names) != k:
        raise file.error(f"{len(names)} names for {k} clusters")
    if clusterings < 1 or k % clusterings or (bias is not None and clusterings > 1):
        raise file.error(f"{k} clusters cannot form {clusterings} equal clusterings")
    return ClustersArtifact(file.manifest, centroids, bias, names, clusterings)


class ClustersSettings(StrategySettings):
    """Selects among any number of pools by expected error and cost (UniRoute)."""

    kind: Literal["clusters"]
    artifact: FilePath = Field(description="File of `semroute fit clusters`.")
    profiles: FilePath = Field(description="Directory of profiles, one `NAME.json` for each model.")
    pools: tuple[PoolName, ...] | None = Field(
        None, min_length=1, description="Candidate pools; default: all with a price and a profile."
    )
    estimate: Literal["shrunk", "laplace"] = Field(
        "shrunk", description="Error estimate of a cluster: shrunk to the model's mean, or by Laplace's rule."
    )
    shrinkage: float = Field(20.0, gt=0, description="Weight of the mean error per cluster, in answers.")
    quality: Share = Field(0.5, description="Trade-off if neither the client nor the model's entry sets one.")
    trade: float = Field(
        0.1,
        gt=0,
        le=100,
        description="Cost weight λ at quality 0.5: the increase in expected error (0..1) that is accepted to "
        "save the cost of a reference request at the most expensive pool.",
    )
    output_tokens: int = Field(300, gt=0, description="Answer length in tokens if a profile has none.")
    on_unknown: PoolName | None = Field(
        None, description="Pool for unknown texts; default: the pool with the lowest mean error."
    )
    files: ClassVar = {"artifact": read_clusters}
    directory: ClassVar[str] = "profiles"
    weighs_cost: ClassVar[bool] = True

    def compile(self, site: Site) -> Strategy:
        """Compile with the artifact's clusters and the profiles that match them; raises Unfit."""
        artifact, profiles = site.artifact(ClustersArtifact), site.files.get("profiles")
        if profiles is None:
            raise Unfit
        priced = {name: pool for name, pool in site.pools.items() if pool.price is not None}
        if not (chosen := self.pools or tuple(priced)):
            raise Unfit("pools", "no pool has a price, and this strategy needs prices")
        for index, pool in enumerate(chosen):
            if pool not in priced:
                site.problem("pools", f"pool {pool} has no price", index)
        return Clusters(self, artifact, {pool: site.pools[pool] for pool in chosen}, profiles)


def cluster_errors(profile: Profile, estimate: Literal["shrunk", "laplace"], shrinkage: float) -> Doubles:
    """Ψ: a model's expected error in each cluster; (k,)."""
    weight, prior = (2.0, 0.5) if estimate == "laplace" else (shrinkage, profile.mean_error)
    return np.asarray((np.asarray(profile.errors) + weight * prior) / (np.asarray(profile.answers) + weight))


def cluster_tokens(profile: Profile, default: float) -> Doubles:
    """Expected tokens of an answer in each cluster, the model's mean where a cluster has none; (k,)."""
    known = [(t, n) for t, n in zip(profile.output_tokens, profile.answers, strict=False) if t is not None]
    mass = sum(n for _, n in known)
    mean = sum(t * n for t, n in known) / mass if mass > 0 else default
    tokens = profile.output_tokens or (None,) * len(profile.answers)
    return np.asarray([mean if t is None else t for t in tokens], dtype=np.float64)


def trade_off(quality: float, trade: float, bias: float = 0.0) -> float:
    """λ of a quality within (0, 1)."""
    return trade * (1.0 - quality) / quality * math.exp(-bias)


class Row(NamedTuple):
    """A pool whose model has a profile."""

    pool: str
    errors: Doubles  # (k,)
    tokens: Doubles  # (k,)
    mean_error: float
    input: float  # price of a prompt token, in units of the reference request
    output: float  # of an answer token


class Clusters(Strategy):
    """argmin over the pools with a profile of error plus λ times cost."""

    needs_signals = hard_preferences = True

    def __init__(
        self, settings: ClustersSettings, artifact: ClustersArtifact, pools: Pools, profiles: Profiles
    ) -> None:
        """`pools` to choose from, all with a price; `profiles` is called for every choice."""
        self._settings, self._artifact, self._pools, self.profiles = settings, artifact, pools, profiles
        self.names = artifact.names
        prices = {name: pool.price for name, pool in pools.items() if pool.price}
        tokens = (REFERENCE_PROMPT_TOKENS, settings.output_tokens)
        costs = [price.input * tokens[0] + price.output * tokens[1] for price in prices.values()]
        unit = max(costs, default=0.0) or 1.0
        self._prices = {name: (price.input / unit, price.output / unit) for name, price in prices.items()}
        self._seen: Mapping[str, Profile] = {}
        self._rows: list[Row] = []

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The score is the expected error of the pool that was picked."""
        if (profiles := self.profiles()) is not self._seen:
            self._rows, self._seen = self._tabulate(profiles), profiles
        rows, signals = [row for row in self._rows if row.pool in candidates.pools], context.signals
        if not rows:
            return Choice(candidates.first_of(), "no pool with a profile could answer")
        x = self._artifact.manifest.embedding(signals) if signals is not None else None
        if signals is not None and x is not None:
            member = self._artifact.membership(x[None, :])[0]
            why = "text is out of distribution" if signals.unknown else ""
        else:
            # The artifact's bundle did not read the text, so all clusters are equally likely.
            k = len(self._artifact.centroids)
            member = np.full(k, 1.0 / k, dtype=np.float32)
            why = "clusters are unknown in its language"
        if why and not context.hard_preference:
            by_error = tuple(row.pool for row in sorted(rows, key=lambda row: row.mean_error))
            return Choice(self._settings.on_unknown or by_error[0], why, by_error)
        quality = self._settings.quality if context.quality is None else context.quality
        errors = np.asarray([row.errors @ member for row in rows])
        # The expected answer is never longer than the client allows.
        most = context.view.max_output_tokens or np.inf
        answers = [min(row.tokens @ member, most) for row in rows]
        costs = [r.input * context.prompt_tokens + r.output * n for r, n in zip(rows, answers, strict=True)]
        order, moved = self._order(rows, errors, np.asarray(costs), quality, context)
        error, (best, *others) = float(errors[order[0]]), (rows[i].pool for i in order)
        reason = f"error {error:.2f} at cost {costs[order[0]]:.2f}, quality {quality:g}"
        return Choice(best, reason, tuple(others), score=error, moved=moved)

    def near(self, signals: Signals) -> list[Near]:
        """The clusters that the text belongs to most, with each pool's expected error there."""
        x, rows = self._artifact.manifest.embedding(signals), self._rows
        if x is None:
            return []
        member = self._artifact.membership(x[None, :])[0]
        found = np.argsort(-member)[:NEAR_MAX].tolist()
        errors = {k: ", ".join(f"{row.pool} errs {row.errors[k]:.2f}" for row in rows) for k in found}
        return [Near(self._artifact.names[k], float(member[k]), errors[k]) for k in found if member[k] > 0.0]

    def _order(
        self, rows: list[Row], errors: Doubles, costs: Doubles, quality: float, context: RoutingContext
    ) -> tuple[npt.NDArray[np.intp], tuple[tuple[str, str], ...]]:
        """The rows from best to worst, ties to the cheaper, and the controllers that changed the best."""
        if not 0.0 < quality < 1.0:
            return np.lexsort((costs, errors) if quality > 0.0 else (errors, costs)), ()
        pressure = np.asarray([context.conditions.pressure.get(row.pool, 0.0) for row in rows])
        bias, trade, charged = context.bias, self._settings.trade, costs + pressure
        calm = np.lexsort((errors, costs, errors + trade_off(quality, trade) * costs))
        order = np.lexsort((errors, costs, errors + trade_off(quality, trade, bias) * charged))
        moved: list[tuple[str, str]] = []
        if order[0] != calm[0]:
            if bias:
                moved.append(("budget", f"{bias:+.2f}"))
            if pressure.any():
                moved.append(("load", f"{rows[calm[0]].pool} to {rows[order[0]].pool}"))
        return order, tuple(moved)

    def _tabulate(self, profiles: Mapping[str, Profile]) -> list[Row]:
        settings, rows = self._settings, list[Row]()
        for name, prices in self._prices.items():
            profile = profiles.get(self._pools[name].model)
            if profile is not None and profile.clusters == self._artifact.digest:
                errors = cluster_errors(profile, settings.estimate, settings.shrinkage)
                tokens = cluster_tokens(profile, settings.output_tokens)
                rows.append(Row(name, errors, tokens, profile.mean_error, *prices))
        return rows

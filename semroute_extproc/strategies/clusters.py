"""The clusters strategy: the least expected error plus price, among any number of pools.

Pure. UniRoute (arXiv 2502.08773): a prompt x belongs to clusters, Φ(x); a model is known by its
errors in each, Ψ(h); and x goes to

    argmin_n  Φ(x) · Ψ(h_n) + λ c_n(x)                                  (sections 4 and 5)

Φ is a nearest centroid or the learned softmax map. Ψ comes from a profile's counts, either shrunk to
the model's own mean, (wrong + m·mean) / (answers + m), or by Laplace's rule, (wrong + 1) / (answers + 2).
c_n(x) is what this request would cost at pool n, in units of what the dearest pool charges for a
reference request: prompt tokens and expected answer tokens at the pool's prices.

λ follows the quality q: λ = trade · (1 − q) / q, so it is `trade` at ½, falls as q rises, and both
ends hold as limits: at 1 the least error, at 0 the least price. A budget's leaning l adds to the
log-odds of q, which multiplies λ by exp(−l). Pressure p on a pool (0..1) adds p to its cost c_n, as if
it had to be paid for with a reference request at the dearest pool. The ends of q are promises that
neither moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from semroute_extproc.config.models import ClustersStrategy, Pool
from semroute_extproc.encoder.signals import FloatArray
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.strategies.artifacts import Clusters as Artifact
from semroute_extproc.strategies.profiles import Profile

REFERENCE_PROMPT_TOKENS = 500
"""Prompt tokens of the reference request, whose price at the dearest pool is cost 1."""

PRESSURE_COST = 1.0
"""Cost that a full pool seems to have beyond its price."""

Floats = npt.NDArray[np.float64]
Profiles = Callable[[], Mapping[str, Profile]]
"""Model to profile as of now; another mapping object whenever one came, went or changed."""


def cluster_errors(profile: Profile, estimate: Literal["shrunk", "laplace"], shrinkage: float) -> Floats:
    """Ψ: a model's expected error in each cluster; (k,)."""
    wrong, answers = np.asarray(profile.errors), np.asarray(profile.answers)
    if estimate == "laplace":
        return np.asarray((wrong + 1.0) / (answers + 2.0), dtype=np.float64)
    return np.asarray((wrong + shrinkage * profile.mean_error) / (answers + shrinkage), dtype=np.float64)


def cluster_tokens(profile: Profile, default: float) -> Floats:
    """Expected tokens of an answer in each cluster, the model's mean where a cluster has none; (k,)."""
    known = [(t, n) for t, n in zip(profile.output_tokens, profile.answers, strict=False) if t is not None]
    mass = sum(n for _, n in known)
    mean = sum(t * n for t, n in known) / mass if mass > 0 else default
    tokens = profile.output_tokens or (None,) * len(profile.answers)
    return np.asarray([mean if t is None else t for t in tokens], dtype=np.float64)


def choosable(settings: ClustersStrategy, pools: Mapping[str, Pool]) -> tuple[str, ...]:
    """The pools a strategy may choose: those it names, else all that have a price."""
    if settings.pools is not None:
        return settings.pools
    return tuple(name for name, pool in pools.items() if pool.price is not None)


def trade_off(quality: float, trade: float, leaning: float = 0.0) -> float:
    """λ of a quality within (0, 1)."""
    return trade * (1.0 - quality) / quality * math.exp(-leaning)


@dataclass(frozen=True, slots=True)
class Table:
    """The pools whose models are known, with what is known of them."""

    pools: tuple[str, ...]
    errors: Floats
    """Shape (pools, k)."""
    tokens: Floats
    """Shape (pools, k)."""
    mean_errors: Floats
    """Shape (pools,)."""
    prices: Floats
    """Shape (pools, 2): of a prompt and of an answer token, in units of the reference request."""


class Clusters(Strategy):
    """argmin over the pools with a profile of error plus λ times cost."""

    needs_signals = True
    hard_preferences = True

    def __init__(
        self,
        name: str,
        settings: ClustersStrategy,
        artifact: Artifact,
        pools: Mapping[str, Pool],
        profiles: Profiles,
    ) -> None:
        """`profiles` is asked at every choice and belongs to the artifact."""
        self._name = name
        self._settings = settings
        self._artifact = artifact
        self._pools = {pool: pools[pool] for pool in choosable(settings, pools)}
        self._profiles = profiles
        self._seen: Mapping[str, Profile] | None = None
        self._table = self._tabulate({})

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """The score is the expected error of the pool that was picked."""
        table = self._current()
        rows = [row for row, pool in enumerate(table.pools) if pool in candidates.pools]
        if not rows:
            return Choice(candidates.first_of(), "no pool with a profile could answer")
        signals = facts.signals
        quality = self._settings.quality if facts.quality is None else facts.quality
        x = signals.neighbours if signals is not None else None
        k, d = self._artifact.centroids.shape
        if (
            signals is not None
            and x is not None
            and signals.revision == self._artifact.manifest.revision
            and x.shape == (d,)
        ):
            member = self._artifact.membership(x[None, :])[0]
            why = "text is out of distribution" if signals.unknown else ""
        else:
            # Nobody read it, or another bundle did: nothing speaks for one cluster over another.
            member = np.full(k, 1.0 / k, dtype=np.float32)
            why = "clusters are unknown in its language"
        if why and not facts.hard_preference:
            return self._unsure(rows, table, why)
        errors = table.errors[rows] @ member
        costs = self._costs(table, rows, member, facts)
        order, moved = self._order(errors, costs, quality, facts, [table.pools[row] for row in rows])
        best, *others = (table.pools[rows[i]] for i in order)
        first = order[0]
        reason = f"error {errors[first]:.2f} at cost {costs[first]:.2f}, quality {quality:g}"
        return Choice(best, reason, tuple(others), score=float(errors[first]), moved=moved)

    def _order(
        self, errors: Floats, costs: Floats, quality: float, facts: RoutingContext, pools: list[str]
    ) -> tuple[list[int], tuple[tuple[str, str], ...]]:
        """The pools from best to worst, and the controllers that changed which is the best.

        Equal objectives go to the cheaper, then to the better one.
        """
        if quality >= 1.0:
            return list(np.lexsort((costs, errors))), ()
        if quality <= 0.0:
            return list(np.lexsort((errors, costs))), ()
        pressure = np.asarray([facts.conditions.pressure.get(pool, 0.0) for pool in pools])
        leaning = facts.conditions.bias.get(self._name, 0.0)
        trade = trade_off(quality, self._settings.trade)
        calm = np.lexsort((errors, costs, errors + trade * costs))
        if not leaning and not pressure.any():
            return list(calm), ()
        trade = trade_off(quality, self._settings.trade, leaning)
        order = np.lexsort((errors, costs, errors + trade * (costs + PRESSURE_COST * pressure)))
        if order[0] == calm[0]:
            return list(order), ()
        moved = [("budget", f"{leaning:+.2f}")] if leaning else []
        if pressure.any():
            moved.append(("load", f"{pools[calm[0]]} to {pools[order[0]]}"))
        return list(order), tuple(moved)

    def _costs(self, table: Table, rows: list[int], member: FloatArray, facts: RoutingContext) -> Floats:
        """c_n(x), (rows,): the expected answer is never longer than the client allows."""
        answer = table.tokens[rows] @ member
        if facts.view.max_output_tokens is not None:
            answer = np.minimum(answer, facts.view.max_output_tokens)
        prices = table.prices[rows]
        found: Floats = prices[:, 0] * facts.prompt_tokens + prices[:, 1] * answer
        return found

    def _unsure(self, rows: list[int], table: Table, why: str) -> Choice:
        by_error = [table.pools[row] for row in sorted(rows, key=lambda row: float(table.mean_errors[row]))]
        wanted = self._settings.unsure or by_error[0]
        return Choice(wanted, why, tuple(by_error))

    def _current(self) -> Table:
        """The table of the profiles as they are now, made anew only when they changed."""
        profiles = self._profiles()
        if profiles is not self._seen:
            self._table, self._seen = self._tabulate(profiles), profiles
        return self._table

    def _tabulate(self, profiles: Mapping[str, Profile]) -> Table:
        digest, settings = self._artifact.digest, self._settings
        known = {
            name: profiles[pool.model]
            for name, pool in self._pools.items()
            if pool.model in profiles and profiles[pool.model].clusters == digest
        }
        k = len(self._artifact.centroids)
        prices = np.asarray(
            [(p.price.input, p.price.output) if p.price else (0.0, 0.0) for p in self._pools.values()]
        )
        dearest = float((prices @ np.asarray([REFERENCE_PROMPT_TOKENS, settings.output_tokens])).max())
        unit = dict(zip(self._pools, prices / (dearest or 1.0), strict=True))
        errors = [cluster_errors(each, settings.estimate, settings.shrinkage) for each in known.values()]
        tokens = [cluster_tokens(each, settings.output_tokens) for each in known.values()]
        return Table(
            tuple(known),
            np.asarray(errors).reshape(len(known), k),
            np.asarray(tokens).reshape(len(known), k),
            np.asarray([each.mean_error for each in known.values()]),
            np.asarray([unit[name] for name in known]).reshape(len(known), 2),
        )

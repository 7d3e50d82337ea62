"""What a replay found: shares, dollars, latency and flips, with intervals, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from semroute_extproc.settings.pools import Pool, cost
from semroute_lab.common.decisions import Record
from semroute_lab.common.metrics import Floats, estimate
from semroute_lab.profile.tally import interval

CHUNK = 2_000  # Decisions whose resamples are drawn at once
REFUSED = "(refused)"


class Bootstrap:
    """A Poisson bootstrap of means: a replicate draws each row Poisson(1) times, so rows can be streamed."""

    def __init__(self, replicates: int, seed: int | tuple[int, ...]) -> None:
        self._rng, self._replicates = np.random.default_rng(seed), replicates
        self._rows: list[tuple[float, ...]] = []
        self.sums = np.zeros(3)  # Rows, and the sums of both values.
        self._samples = np.zeros((replicates, 3))

    def add(self, before: float, after: float) -> None:
        """Take a row."""
        self._rows.append((1.0, before, after))
        if len(self._rows) == CHUNK:
            self._draw()

    def _draw(self) -> None:
        rows = np.asarray(self._rows).reshape(-1, 3)
        self.sums += rows.sum(axis=0)
        self._samples += self._rng.poisson(1.0, (self._replicates, len(rows))) @ rows
        self._rows = []

    def state(self) -> list[Any]:
        """Plain data for `merge`."""
        self._draw()
        return [self.sums.tolist(), self._samples.tolist()]

    def merge(self, state: list[Any]) -> None:
        """Take the rows of another part."""
        self.sums += state[0]
        self._samples += np.asarray(state[1]).reshape(-1, 3)

    def means(self, factor: float) -> dict[str, Any] | None:
        """Mean before, after and of the difference, times `factor`, with intervals; None without rows."""
        self._draw()
        if not self.sums[0]:
            return None
        drawn = self._samples[self._samples[:, 0] > 0]

        def of(sums: Floats) -> Floats:
            both = factor * sums[:, 1:] / sums[:, :1]
            return np.concatenate([both, both[:, 1:] - both[:, :1]], axis=1)

        values, samples = of(self.sums[None, :])[0], of(drawn)
        names = ("before", "after", "difference")
        return {
            name: _figure(float(value), column if len(drawn) else None)
            for name, value, column in zip(names, values, samples.T, strict=True)
        }


def _figure(value: float, samples: Floats | None) -> dict[str, float | None]:
    found = estimate(value, samples)
    return {"value": found.value, "low": found.low, "high": found.high}


def share(count: float, of: float) -> dict[str, float]:
    """A share with its Wilson interval."""
    low, high = interval(count, of)
    return {"value": count / of if of else 0.0, "low": low, "high": high}


class Tally:
    """The decisions of a replay, counted."""

    def __init__(
        self,
        pools: tuple[Mapping[str, Pool], Mapping[str, Pool]],
        output_tokens: int,
        examples: int,
        replicates: int,
        seed: int | tuple[int, ...],
    ) -> None:
        """`pools` are those of the old and of the new configuration."""
        self._pools, self._output, self._most = pools, output_tokens, examples
        self.before, self.after, self.flips = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
        self.kept = Counter[str]()  # Why decisions were not made again.
        self.decided = self.usage = 0
        self._dollars = Bootstrap(replicates, seed)
        self._times: dict[str, list[float]] = {}  # Pool to the number of answers and their milliseconds
        self.examples: list[dict[str, Any]] = []

    def keep(self, why: str) -> None:
        """Count a decision that was not made again."""
        self.kept[why] += 1

    def add(self, record: Record, pool: str, reason: str) -> None:
        """Count a decision that was made again."""
        was = record.get("pool") or REFUSED
        self.decided += 1
        self.before[was] += 1
        self.after[pool] += 1
        usage: dict[str, Any] = record.get("usage") or {}
        self.usage += bool(usage)
        if (ms := usage.get("duration_ms")) is not None:
            times = self._times.setdefault(was, [0.0, 0.0])
            times[0] += 1
            times[1] += ms
        limit = record["facts"]["max_output_tokens"] or self._output
        tokens = usage.get("input_tokens", record["prompt_tokens"])
        output = usage.get("output_tokens", min(limit, self._output))
        was_cost, now_cost = (self._cost(side, name, tokens, output) for side, name in enumerate((was, pool)))
        if was_cost is not None and now_cost is not None:
            self._dollars.add(was_cost, now_cost)
        if was != pool:
            self.flips[was, pool] += 1
            if len(self.examples) < self._most:
                known: dict[str, Any] = {
                    key: record[key] for key in ("request_id", "prompt", "score") if key in record
                }
                self.examples.append({**known, "before": was, "after": pool, "reason": reason})

    def state(self) -> dict[str, Any]:
        """Plain data for `merge`."""
        return {
            "counts": [list(each.items()) for each in self._counts],
            "numbers": [self.decided, self.usage],
            "times": self._times,
            "dollars": self._dollars.state(),
            "examples": self.examples,
        }

    def merge(self, state: dict[str, Any]) -> None:
        """Take the decisions of another part."""
        for counter, items in zip(self._counts, state["counts"], strict=True):
            for key, count in items:
                counter[tuple(key) if isinstance(key, list) else key] += count
        self.decided += state["numbers"][0]
        self.usage += state["numbers"][1]
        for name, times in state["times"].items():
            self._times[name] = np.add(self._times.get(name, [0.0, 0.0]), times).tolist()
        self._dollars.merge(state["dollars"])
        self.examples += state["examples"][: self._most - len(self.examples)]

    @property
    def _counts(self) -> tuple[Counter[Any], ...]:
        return self.before, self.after, self.flips, self.kept

    def _cost(self, side: int, name: str, tokens: Any, output: Any) -> float | None:
        if name == REFUSED:
            return 0.0
        pool = self._pools[side].get(name)
        return None if pool is None or pool.price is None else cost(pool, tokens, output)

    def report(self) -> dict[str, Any]:
        """Everything as plain values."""
        n, dollars = self.decided, self._dollars.means(1_000.0)
        pools = sorted({*self.before, *self.after})
        flips = sum(self.flips.values())
        return {
            "decisions": n + self.kept.total(),
            "decided_again": n,
            "kept": dict(self.kept.most_common()),
            "agreement": share(n - flips, n),
            "pools": {
                name: {"before": share(self.before[name], n), "after": share(self.after[name], n)}
                for name in pools
            },
            "dollars_per_thousand": dollars,
            "dollars_rows": int(self._dollars.sums[0]),
            "usage_rows": self.usage,
            "latency_ms": self._latency(),
            "flips": [
                {"before": was, "after": now, **share(count, n), "count": count}
                for (was, now), count in self.flips.most_common()
            ],
            "examples": self.examples,
        }

    def _latency(self) -> dict[str, float] | None:
        """Mean time of an answer, if the log has it for every pool; each pool keeps its own mean."""
        means = {name: total / count for name, (count, total) in self._times.items()}
        wanted = {*self.before, *self.after} - {REFUSED}
        if not self.decided or wanted - means.keys():
            return None
        sides = {"before": self.before, "after": self.after}
        served = {side: sum(counts[name] for name in wanted) or 1 for side, counts in sides.items()}
        return {
            side: sum(means[name] * counts[name] for name in wanted) / served[side]
            for side, counts in sides.items()
        }

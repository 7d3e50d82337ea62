"""Weak or strong by one score and one threshold, for every strategy of a pair. Pure.

Hybrid LLM (arXiv 2404.14618) section 3 and RouteLLM (arXiv 2406.18665) section 3: the strong model has
the queries whose score is at least a threshold, which trades cost for quality. The trade-off is kept as
the strong *share*; quantiles of the score, on reference traffic or on the strategy's own, turn it into a
threshold (`state.live`).

Controllers act on the share, s, in this order. A budget's bias b adds to its log-odds:
logit s' = logit s + b. Then pressure, on the easiest requests: with d = pressure(strong) − pressure(weak),

    d > 0:  s'' = s' − d · (s' − floor)        but never up: nothing if s' is below the floor
    d < 0:  s'' = s' + |d| · (ceiling − s')    only if there is a ceiling; never down
"""

from collections.abc import Sequence

from semroute_extproc.policy.context import Choice, RoutingContext
from semroute_extproc.state.live import biased, rise_above, share_for_threshold, threshold_for_share


def pressed(share: float, weak: float, strong: float, floor: float, ceiling: float | None) -> float:
    """The strong share (0..1) after the pressures `weak` and `strong` (0..1)."""
    if (net := strong - weak) > 0.0:
        return share - net * max(share - floor, 0.0)
    return share if ceiling is None else share - net * max(ceiling - share, 0.0)


class Cutoff:
    """Selects the strong pool for scores at or above a threshold."""

    def __init__(
        self,
        weak: str,
        strong: str,
        quantiles: Sequence[float],
        *,
        share: float | None = None,
        threshold: float | None = None,
        follow: bool = False,
        what: str = "difficulty",
        digits: int = 2,
        of: str = "the reference scores",
    ) -> None:
        """Exactly one of `share` and `threshold`; the reason shows the score as `what`, with `digits`.

        `of` says in words what `quantiles` are of. With `follow`, a share is of the context's traffic, which
        starts with `quantiles`.
        """
        assert (share is None) != (threshold is None)
        self.weak, self.strong, self.what, self._digits, self._of = weak, strong, what, digits, of
        self._configured = threshold is not None
        self._quantiles = quantiles
        if share is not None:
            self.threshold, self.share = threshold_for_share(quantiles, share), share
        elif threshold is not None:
            self.threshold, self.share = threshold, share_for_threshold(quantiles, threshold)
        self.follows = (self.share, quantiles) if follow else None

    def choose(self, score: float, context: RoutingContext) -> Choice:
        """The pool for a score; a quality set for the request replaces the share."""
        traffic, share = context.traffic if self.follows else None, self.share
        quantiles, bias = (self._quantiles, 0.0) if traffic is None else (traffic.scores, traffic.bias)
        if context.quality is not None:
            share = context.quality
        if context.hard_preference:
            wanted, other = (self.strong, self.weak) if share else (self.weak, self.strong)
            threshold = threshold_for_share(quantiles, share)
            return Choice(wanted, f"quality {share:g} was asked for", (other,), score, threshold)
        moved, conditions, threshold = list[tuple[str, str]](), context.conditions, self.threshold
        if context.bias:
            share = biased(share, context.bias)
            moved.append(("budget", f"{context.bias:+.2f}"))
        if conditions.pressure:
            weak, strong = (conditions.pressure.get(pool, 0.0) for pool in (self.weak, self.strong))
            left = pressed(share, weak, strong, conditions.floor, conditions.ceiling)
            if left != share:
                moved.append(("load", f"share {share:.2f} to {left:.2f}"))
            share = left
        if traffic is not None or share != self.share:
            threshold = threshold_for_share(quantiles, share, bias)
        wanted, other, place, rise = self.weak, self.strong, "below", None
        if score >= threshold:
            wanted, other, place = self.strong, self.weak, "at least"
            rise = rise_above(quantiles, threshold, score)
        changed, sample, detail = share if moved else None, None, ""
        source = f"the top {share:.0%} of {self._of}"
        if traffic is not None:
            reference = len(quantiles) - traffic.live
            also = f" and {reference} reference scores" if reference else ""
            if traffic.live:
                source = f"the top {share:.0%} of your last {traffic.live:,} requests{also}"
            detail, sample = f", bias {bias:+.2f}", (score, share, score >= threshold)
        elif self._configured and share == self.share:
            source = "the configured threshold"
        reason = f"{self.what} {self._compared(score, place, threshold)}, {source}"
        source += detail
        return Choice(wanted, reason, (other,), score, threshold, changed, source, sample, rise, tuple(moved))

    def _compared(self, score: float, place: str, threshold: float) -> str:
        """`0.52 is below 0.63`, with more digits if the two would look the same."""
        bar, digits = min(threshold, 1.0), self._digits  # A threshold that no score reaches is infinite.
        shown = f"{score:.{digits}f} is {place} {bar:.{digits}f}"
        if place == "below" and bar - score < 10.0**-digits:
            shown = f"{score:.{digits + 2}f} is {place} {bar:.{digits + 2}f}"
        return shown

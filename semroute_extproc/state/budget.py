"""The budget controller: a strategy's strong share, or what it costs, held to a target.

Pure; the clock is an argument, in seconds. After each of the strategy's decisions

    leaning += gain · (target − y),    |leaning| <= leaning_max

where y is 1 if the strong pool has the request and 0 if not, and the leaning is added to the
log-odds of the strong share (`policy.cutoff`). This is integral control one request at a time, the
stochastic approximation that follows a quantile (Robbins and Monro 1951; under drift: Gibbs and
Candes, arXiv 2106.00170, section 2). Summing it up over N requests gives, whatever the traffic does,

    |realised share − target| <= (largest leaning − smallest leaning) / (gain · N)

as long as the leaning is not at its bound: so a drift cannot leave a lasting error, only one that
the window forgets. The gain is `GAIN` shared out over the window. With the share's slope s(1 − s)
over its log-odds an error shrinks by e in window / (GAIN · s(1 − s)) requests, 0.4 windows at
s = 0.3, and the loop could only oscillate at a gain above 2 / 0.25: it is bounded far below.

Wind-up. At the bound the sum is cut, and while pressure lowers the strategy's strong share, where the
leaning was when the pressure began is its upper bound: otherwise the budget would work against the load
controller, and pay the difference back in one go when it is quiet. Below that it moves as ever. To
forbid every rise instead would leave the steps down alone, and end at the lower bound whatever was spent.

Dollars. y is what the request costs where it went, reckoned from prices, the prompt and the answer
that is asked for; errors are measured in the mean difference between the two pools, so that the
same gain holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semroute_extproc.settings.controllers import Budget

GAIN = 12.0
"""Log-odds for a whole window of full error."""

WINDOW_DEFAULT = 1_000
"""Requests, where the budget names no window."""

WINDOW_MIN = 50.0
"""Fewest requests a window counts as: a larger gain would throw the share about at random."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one decision spent, in the budget's unit."""

    value: float
    """1 or 0 for a share, dollars for dollars."""
    spread: float = 1.0
    """What the strong pool would have spent beyond the weak one."""


class BudgetController:
    """The leaning of one strategy."""

    def __init__(self, settings: Budget) -> None:
        self.settings = settings
        if settings.strong_share is not None:
            self.target = settings.strong_share
        else:
            assert settings.dollars_per_thousand is not None
            self.target = settings.dollars_per_thousand / 1e3
        self.leaning = 0.0
        """Added to the log-odds of the strong share."""
        self.realised: float | None = None
        """Mean of what was spent for a request over the window, in the target's unit; None before the
        first."""
        self.requests = 0
        """Decisions so far."""
        self._spread: float | None = None
        self._recent = 0.0
        """Requests within the window, forgotten exponentially; only with a window of seconds."""
        self._last = -math.inf
        self._top: float | None = None
        """The leaning when the pressure began; None while there is none."""

    def decided(self, spent: Spent, pressed: bool, now: float) -> None:
        """Take one decision of the strategy into account; `pressed`: the load lowers its share."""
        window = self._window(now)
        self.requests += 1
        # A plain mean until the window is full, then one that forgets.
        weight = 1.0 / min(self.requests, window)
        self.realised = _mixed(self.realised, spent.value, weight)
        self._spread = _mixed(self._spread, spent.spread, weight)
        if self._spread <= 0.0:
            # Where both pools cost the same no share changes anything.
            return
        step = GAIN / window * (self.target - spent.value) / self._spread
        bound = self.settings.bias_max
        if not pressed:
            self._top = None
        elif self._top is None:
            self._top = self.leaning
        self.leaning = min(max(self.leaning + step, -bound), bound if self._top is None else self._top)

    def _window(self, now: float) -> float:
        """The window in requests, `WINDOW_MIN` at least."""
        seconds = self.settings.window_seconds
        if seconds is None:
            return float(self.settings.window_requests or WINDOW_DEFAULT)
        elapsed = max(now - self._last, 0.0)
        self._last = max(now, self._last)
        self._recent = self._recent * math.exp(-elapsed / seconds) + 1.0
        return max(self._recent, WINDOW_MIN)


def _mixed(mean: float | None, value: float, weight: float) -> float:
    return value if mean is None else mean + weight * (value - mean)

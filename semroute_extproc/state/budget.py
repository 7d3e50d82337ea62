"""The budget controller: holds a strategy's strong share, or its cost, to a target. Pure.

The clock is an argument, in seconds. After each of the strategy's decisions

    bias += gain · (target − y),    |bias| <= leaning_max

where y is 1 if the strong pool has the request and 0 if not, and the bias is added to the log-odds of
the strong share (`strategies.cutoff`). This is integral control one request at a time, the stochastic
approximation that follows a quantile (Robbins and Monro 1951; under drift: Gibbs and Candes, arXiv
2106.00170, section 2). Summed over N requests it gives, for any traffic,

    |realised share − target| <= (largest bias − smallest bias) / (gain · N)

as long as the bias is not at its bound, so a drift leaves no lasting error. The gain is `GAIN` divided
by the window. As the share's slope over its log-odds is s(1 − s), an error shrinks by e in
window / (GAIN · s(1 − s)) requests, 0.4 windows at s = 0.3. The loop could only oscillate at a gain
above 2 / 0.25, far above this one.

Wind-up. At the bound the sum is cut. While pressure lowers the strategy's strong share, the bias cannot
rise above its value when the pressure began: otherwise the budget would work against the load
controller and pay the difference back at once afterwards. Below that value it moves freely; steps down
alone would end at the lower bound.

Dollars. y is the cost of the request at its pool, from prices, the prompt and the requested answer.
Errors are divided by the mean cost difference of the two pools, so the same gain holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from semroute_extproc.settings.controllers import Budget

GAIN = 12.0
"""Log-odds for a whole window of full error."""

WINDOW_DEFAULT = 1_000
"""Requests, where the budget sets no window."""

WINDOW_MIN = 50.0
"""Smallest window, in requests: a larger gain would make the share erratic."""


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of one decision, in the budget's unit."""

    value: float
    """1 or 0 for a share, dollars for dollars."""
    spread: float = 1.0
    """How much more the strong pool would have cost than the weak one."""


class BudgetController:
    """The bias of one strategy."""

    def __init__(self, settings: Budget) -> None:
        self.settings = settings
        dollars = settings.dollars_per_thousand or 0.0
        self.target = dollars / 1e3 if settings.strong_share is None else settings.strong_share
        self.bias = 0.0
        """Added to the log-odds of the strong share."""
        self.realised: float | None = None
        """Mean cost of a request over the window, in the target's unit; None before the first."""
        self.requests = 0
        """Decisions so far."""
        self._spread: float | None = None
        self._recent = 0.0
        """Requests within a window of seconds, with exponential decay."""
        self._last = -math.inf
        self._top: float | None = None
        """The bias when the current pressure began; None without pressure."""

    def decided(self, spent: Spent, pressed: bool, now: float) -> None:
        """Learn from one decision of the strategy; `pressed`: the load lowers its strong share."""
        window = self._window(now)
        self.requests += 1
        # A plain mean until the window is full, then one with decay.
        weight = 1.0 / min(self.requests, window)
        self.realised = _mixed(self.realised, spent.value, weight)
        self._spread = _mixed(self._spread, spent.spread, weight)
        if self._spread <= 0.0:
            # Both pools cost the same, so no share changes the cost.
            return
        step = GAIN / window * (self.target - spent.value) / self._spread
        bound = self.settings.bias_max
        if not pressed:
            self._top = None
        elif self._top is None:
            self._top = self.bias
        self.bias = min(max(self.bias + step, -bound), bound if self._top is None else self._top)

    def _window(self, now: float) -> float:
        """The window in requests."""
        seconds = self.settings.window_seconds
        if seconds is None:
            return float(self.settings.window_requests or WINDOW_DEFAULT)
        elapsed = max(now - self._last, 0.0)
        self._last = max(now, self._last)
        self._recent = self._recent * math.exp(-elapsed / seconds) + 1.0
        return max(self._recent, WINDOW_MIN)


def _mixed(mean: float | None, value: float, weight: float) -> float:
    return value if mean is None else mean + weight * (value - mean)

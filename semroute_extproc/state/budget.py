"""The budget controller: holds a strategy's strong share, or its cost, to a target. Pure.

The clock is an argument, in seconds. After each of the strategy's decisions

    bias += gain · (target − y),    |bias| <= bias_max

where y is 1 if the strong pool has the request and 0 if not, and the bias is added to the log-odds of
the strong share (`strategies.cutoff`). This is integral control one request at a time, the stochastic
approximation that follows a quantile (Robbins and Monro 1951; under drift: Gibbs and Candes, arXiv
2106.00170, section 2). Summed over N requests it gives, for any traffic,

    |realized share − target| <= (largest bias − smallest bias) / (gain · N)

as long as the bias is not at its bound, so drift causes no permanent error. The gain is `GAIN` divided by
the window. The slope of the share over its log-odds is s(1 − s), so an error shrinks by a factor of e in
window / (GAIN · s(1 − s)) requests, 0.4 windows at s = 0.3. Only a gain above 8 could oscillate.

Anti-windup. The bias is clamped to its bound. While pressure lowers the strong share, the bias cannot rise
above its value at the start of the pressure: otherwise the budget would counteract the load controller
and overshoot afterwards. Below that value the bias moves freely, so that it can recover from steps down.

Dollars. y is the cost of the request at its pool, from the prices, the prompt and the requested answer
length. Errors are divided by the mean cost difference of the two pools, so that the same gain applies.
"""

import math

from semroute_extproc.settings.controllers import Budget

GAIN = 12.0  # Change of the log-odds over one window with an error of 1.
WINDOW_DEFAULT = 1_000  # Requests, where the budget sets no window.
WINDOW_MIN = 50.0  # Requests; a smaller window's gain would make the share unstable.


class BudgetController:
    """The bias of one strategy on the log-odds of its strong share."""

    def __init__(self, settings: Budget) -> None:
        self.settings = settings
        dollars = settings.dollars_per_thousand or 0.0
        self.target = dollars / 1e3 if settings.strong_share is None else settings.strong_share
        self.bias = 0.0
        self.realized: float | None = None  # Mean cost of a request over the window, in the target's unit.
        self.requests = 0
        self._spread = 0.0
        self._recent, self._last = 0.0, -math.inf
        """Requests within a window of seconds, with exponential decay, and the time of the last one."""
        self._top: float | None = None  # The bias when the current pressure began; None without pressure.

    def decided(self, spent: float, now: float, *, spread: float = 1.0, pressed: bool = False) -> None:
        """Learn from one decision of the strategy.

        `spent` is in the target's unit (1 or 0 for a share). `spread` is the cost difference of the strong
        and the weak pool. `pressed` says that pressure lowers the strong share.
        """
        window = self._window(now)
        self.requests += 1
        # A plain mean until the window is full, then an exponential moving average.
        weight = 1.0 / min(self.requests, window)
        mean = self.realized or 0.0
        self.realized = mean + weight * (spent - mean)
        self._spread += weight * (spread - self._spread)
        if self._spread <= 0.0:
            return  # Both pools cost the same, so no share changes the cost.
        step = GAIN / window * (self.target - spent) / self._spread
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

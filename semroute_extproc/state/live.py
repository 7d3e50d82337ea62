"""A strong share as a threshold: quantiles of reference scores, or of a strategy's own latest scores. Pure.

`LiveScores` keeps the share on a strategy's own requests. Its window turns the share into a quantile of the
latest scores. An integral corrects the errors of the quantile, which is of a sample, is late under drift, and
cannot split equal scores. After each request, with strong = 1 or 0,

    bias += GAIN · (wanted share − strong)        |bias| <= BIAS_MAX

is added to the log-odds of the share (Robbins and Monro 1951; under drift: Gibbs and Candes, arXiv
2106.00170, section 2). Over N requests with the bias inside its bound, for any traffic,

    |mean of strong − mean of the wanted shares| <= (largest bias − smallest bias) / (GAIN · N)

Processes that share a store have one bias and one window: each sends its own scores, and takes those of the
others (`merge`). These are late by an exchange, so the gain shrinks with the number of requests in it.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence

NO_SHARE = 1e-9  # A share below this is rounding.
SHARE_MIN = 0.005  # A biased share is this far from 0 and 1, where log-odds are infinite.
WINDOW = 2_000  # Most scores in a window.
FADE = 2  # Live scores for each reference score that leaves a window; 101 are gone after 202.
GAIN = 0.1  # With a share of 0.3, an error shrinks by a factor of e in 1 / (0.1 · 0.21) = 48 requests.
BIAS_MAX = 4.0  # Log-odds.
LATE_MAX = 20  # Requests of others per sync up to which the gain is full: 20 · 0.1 · 0.21 is a change of 0.4.
UNSENT_MAX = 512  # Scores for the others; of more in one sync, the latest.
STRIDE = 10  # Reference scores leave in steps of 10 %, so that those that stay cover the whole range.

Quantiles = Sequence[float]
"""Scores at equal steps of the traffic, ascending: 0, 1, … 100 % of the reference, or a whole window."""


def threshold_for_share(quantiles: Quantiles, share: float, bias: float = 0.0) -> float:
    """The lowest score of the top `share` (0..1), after a `bias` on its log-odds; inf for a share of 0.

    Equal scores cannot be split: all of them are at or above the threshold, or none, whichever is nearer.
    """
    if share <= 0.0:
        return math.inf
    if share >= 1.0:
        return 0.0
    last = len(quantiles) - 1
    place = (1.0 - (biased(share, bias) if bias else share)) * last
    low, high = quantiles[int(place)], quantiles[min(int(place) + 1, last)]
    if low < high and place % 1.0:
        return max(low + (place % 1.0) * (high - low), math.nextafter(low, math.inf))
    middle = (bisect_left(quantiles, low) + bisect_right(quantiles, low) - 1) / 2.0
    return low if place <= middle else math.nextafter(low, math.inf)


def share_for_threshold(quantiles: Quantiles, threshold: float) -> float:
    """The share of the traffic whose score is at least `threshold`."""
    above = bisect_left(quantiles, threshold)
    if above in (0, len(quantiles)):
        return 0.0 if above else 1.0
    low, high = quantiles[above - 1], quantiles[above]
    return 1.0 - (above - 1 + (threshold - low) / (high - low)) / (len(quantiles) - 1)


def rise_above(quantiles: Quantiles, threshold: float, score: float) -> float:
    """The fraction of the traffic above `threshold` whose score is below `score`."""
    above = share_for_threshold(quantiles, threshold)
    return 1.0 - share_for_threshold(quantiles, score) / above if above > NO_SHARE else 1.0


def biased(share: float, bias: float) -> float:
    """The share (0..1) after adding `bias` to its log-odds."""
    inside = min(max(share, SHARE_MIN), 1.0 - SHARE_MIN)
    return 1.0 / (1.0 + (1.0 - inside) / inside * math.exp(-bias))


class LiveScores:
    """The latest scores of one strategy's requests, at first those of the reference."""

    def __init__(self, share: float, reference: Quantiles) -> None:
        """`share` is the configured one (0..1)."""
        self.share, self.reference = share, tuple(reference)
        self.scores = list(reference)
        self._by_age = deque(score for start in range(STRIDE) for score in reference[start::STRIDE])
        self.bias = 0.0
        self.requests = self.live = 0  # All; and those with a score in `scores`, next to the reference's.
        self.realized: float | None = None  # Mean of strong over the last `WINDOW` requests.
        self._gain, self._moved = GAIN, 0.0
        self.waiting = deque[float](maxlen=UNSENT_MAX)  # Scores for the others.
        self._learned = 0  # Requests of this process.
        self.since, self._counted = "", 0  # The last entry of the store that was read, and its count.

    def learn(self, score: float, asked: float, strong: bool) -> None:
        """Learn from a request that only its score (0..1) decided, with the wanted share `asked`."""
        before = self.bias
        self.bias = min(max(before + self._gain * (asked - strong), -BIAS_MAX), BIAS_MAX)
        self._moved, self._learned = self._moved + self.bias - before, self._learned + 1
        self.waiting.append(score)
        # A plain mean until the window is full, then an exponential moving average.
        mean = self.realized or 0.0
        self.realized = mean + (strong - mean) / min(self._learned, WINDOW)
        self._add(score)

    def unsent(self) -> tuple[list[float], float]:
        """Scores for the others, which are sent once, and the change of the bias."""
        scores = [*self.waiting]
        self.waiting.clear()
        return scores, self._moved

    def merge(self, scores: Sequence[float], bias: float, moved: float, count: int, own: int) -> None:
        """Take the scores of other processes, and the bias and `count` of the requests of all.

        These include the change `moved` and the `own` number of scores of this process.
        """
        late = count - self._counted - own if self._counted else 0
        self._moved, self._counted = self._moved - moved, count
        self.bias = min(max(bias + self._moved, -BIAS_MAX), BIAS_MAX)
        self._gain = GAIN * min(1.0, LATE_MAX / max(late, 1))
        for score in scores:
            self._add(score)

    def _add(self, score: float) -> None:
        self.requests += 1
        insort(self.scores, score)
        self._by_age.append(score)
        while len(self.scores) > min(len(self.reference) + self.requests // FADE, WINDOW):
            del self.scores[bisect_left(self.scores, self._by_age.popleft())]
        self.live = min(self.requests, len(self.scores))

    def status(self) -> dict[str, float | None]:
        """The state, for the admin page and the metrics; another thread may call this."""
        scores = self.scores.copy()  # A copy cannot change meanwhile.
        return {
            "share": self.share,
            "realized": self.realized,
            "threshold": threshold_for_share(scores, self.share, self.bias),
            "reference": threshold_for_share(self.reference, self.share),
            "bias": self.bias,
            "scores": self.live,
        }

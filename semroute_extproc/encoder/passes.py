"""How long a pass of the encoder takes on this machine, learnt from the passes that were run.

Pure. A running mean and mean deviation, as TCP keeps of its round trips (Jacobson 1988; RFC 6298,
section 2, with its gains of 1/8 and 1/4), here per unit of work instead of per segment.
"""

from __future__ import annotations

CHARACTERS_A_TOKEN = 4.0
"""Of alphabetic scripts; where a token has fewer, the time of a unit is learnt to be longer."""

PASS_UNITS = 16.0
"""What a pass costs beside its tokens, in tokens."""

MEAN_GAIN = 1 / 8
DEVIATION_GAIN = 1 / 4
DEVIATIONS = 2.0
"""How many mean deviations above its mean a pass is expected to end within: about 95 % of them."""


def units(characters: int, window: int) -> float:
    """About how much work a text of so many characters is: tokens within the window, and the pass itself."""
    return PASS_UNITS + min(characters / CHARACTERS_A_TOKEN, window)


class PassTime:
    """Seconds a unit of work, 0 before the first pass."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._deviation = 0.0

    @property
    def high(self) -> float:
        """What a unit may well take on a bad day."""
        return self.mean + DEVIATIONS * self._deviation

    def learn(self, seconds: float, units_done: float) -> None:
        """A pass of `units_done` units took `seconds`."""
        rate = seconds / units_done
        if self.mean == 0.0:
            self.mean, self._deviation = rate, rate / 2
            return
        self._deviation += DEVIATION_GAIN * (abs(rate - self.mean) - self._deviation)
        self.mean += MEAN_GAIN * (rate - self.mean)

"""What the strategies of a pair share: a score of the text, one cut-off, and a place for the unsure.

Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from semroute_extproc.config.models import PairStrategy
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.cutoff import Cutoff

Score = Callable[[Signals], float | None]
"""P(the strong model wins) for a text; None where this score does not understand what read it."""


class Pair(Strategy):
    """Strong if score ≥ t, where t comes from a threshold, a strong share or a quality drop."""

    needs_signals = True
    hard_preferences = True

    def __init__(
        self,
        settings: PairStrategy,
        score: Score,
        quantiles: Sequence[float],
        what: str,
        calibration: Calibration | None = None,
        digits: int = 2,
    ) -> None:
        """`quantiles` of the score on reference traffic; a calibration's own prompts replace them.

        `what` names the score in reasons, where it has so many `digits`.
        """
        self._unsure = settings.unsure or settings.strong
        self._score = score
        self._what = what
        share = settings.strong_share
        if calibration is not None:
            quantiles = calibration.quantiles
            if settings.max_quality_drop is not None:
                share = calibration.share_for_drop(settings.max_quality_drop)
        self._cutoff = Cutoff(
            settings.weak,
            settings.strong,
            quantiles,
            share=share,
            threshold=settings.threshold,
            what=what,
            digits=digits,
        )

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """Text that the bundle does not know goes to `unsure`, unless the client asked for an end."""
        signals = facts.signals
        score = self._score(signals) if signals is not None else None
        choice = self._cutoff.choose(0.0 if score is None else score, facts)
        if facts.hard_preference:
            return dataclasses.replace(choice, score=score)
        assert signals is not None
        if not (signals.unknown or score is None):
            return choice
        why = "text is out of distribution" if signals.unknown else f"{self._what} is unknown in its language"
        stand_ins = (self._cutoff.strong, self._cutoff.weak)
        return dataclasses.replace(
            choice,
            pool=self._unsure,
            reason=why,
            stand_ins=stand_ins,
            score=score,
            share=None,
            rise=None,
            moved=(),
        )

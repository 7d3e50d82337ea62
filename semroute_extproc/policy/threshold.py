"""The threshold strategy: the strong pool from a difficulty on.

Pure. Hybrid LLM (arXiv 2404.14618) section 3; RouteLLM (arXiv 2406.18665) section 3.2 with its
BERT classifier.
"""

from __future__ import annotations

import dataclasses

from semroute_extproc.bundle import DifficultyHead
from semroute_extproc.config import ThresholdStrategy
from semroute_extproc.policy.cutoff import Cutoff
from semroute_extproc.policy.decision import Candidates, Choice, Facts


class Threshold:
    """Strong if difficulty ≥ t, where t is given or a quantile of the bundle's reference traffic."""

    needs_signals = True

    def __init__(self, settings: ThresholdStrategy, head: DifficultyHead) -> None:
        self._unsure = settings.unsure or settings.strong
        self._cutoff = Cutoff(
            settings.weak,
            settings.strong,
            head.quantiles,
            share=settings.strong_share,
            threshold=settings.threshold,
        )

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """Text that the bundle does not know goes to `unsure`, unless the client asked for an end."""
        signals = facts.signals
        assert signals is not None
        if signals.unknown and not facts.promised:
            choice = self._cutoff.choose(signals.difficulty, facts)
            stand_ins = (self._cutoff.strong, self._cutoff.weak)
            reason = "text is out of distribution"
            return dataclasses.replace(
                choice, pool=self._unsure, reason=reason, stand_ins=stand_ins, share=None, rise=None, moved=()
            )
        return self._cutoff.choose(signals.difficulty, facts)

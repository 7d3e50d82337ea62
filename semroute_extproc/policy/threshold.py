"""The threshold strategy: the strong pool from a difficulty on.

Pure. Hybrid LLM (arXiv 2404.14618) section 3: one score a query, one threshold, moved at test
time to trade cost for quality; RouteLLM (arXiv 2406.18665) section 3.2 with its BERT classifier.
"""

from __future__ import annotations

from semroute_extproc.bundle import DifficultyHead
from semroute_extproc.config import ThresholdStrategy
from semroute_extproc.policy.decision import Candidates, Choice, Facts


class Threshold:
    """Strong if difficulty ≥ t, where t is given or a quantile of the bundle's reference traffic."""

    needs_signals = True

    def __init__(self, settings: ThresholdStrategy, head: DifficultyHead) -> None:
        self._settings = settings
        self._head = head
        if settings.threshold is not None:
            self._threshold = settings.threshold
        else:
            assert settings.strong_share is not None
            self._threshold = head.threshold_for_share(settings.strong_share)

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """A quality asked for per request replaces the strong share for that request."""
        assert facts.signals is not None
        weak, strong = self._settings.weak, self._settings.strong
        threshold = self._threshold
        if facts.quality is not None:
            threshold = self._head.threshold_for_share(facts.quality)
        difficulty = facts.signals.difficulty
        if facts.signals.unknown and 0.0 < threshold < 1.0:
            wanted = self._settings.unsure or strong
            return Choice(
                candidates.first_of(wanted, strong, weak),
                "text is out of distribution",
                difficulty,
                threshold,
                True,
            )
        if difficulty >= threshold:
            wanted, other, sign = strong, weak, ">="
        else:
            wanted, other, sign = weak, strong, "<"
        reason = f"difficulty {difficulty:.2f} {sign} {threshold:.2f}"
        return Choice(candidates.first_of(wanted, other), reason, difficulty, threshold)

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
        if facts.quality is not None and not 0.0 < facts.quality < 1.0:
            # Both ends are promises: every request, whatever its difficulty.
            wanted, other = (strong, weak) if facts.quality else (weak, strong)
            return Choice(wanted, f"quality {facts.quality:g} was asked for", (other,), difficulty, threshold)
        if facts.signals.unknown:
            wanted = self._settings.unsure or strong
            return Choice(wanted, "text is out of distribution", (strong, weak), difficulty, threshold)
        if difficulty >= threshold:
            return Choice(
                strong, f"difficulty {difficulty:.2f} >= {threshold:.2f}", (weak,), difficulty, threshold
            )
        return Choice(
            weak, f"difficulty {difficulty:.2f} < {threshold:.2f}", (strong,), difficulty, threshold
        )

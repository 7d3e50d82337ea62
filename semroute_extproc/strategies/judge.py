"""The judge strategy: the strong pool from a judge's score on, and from the difficulty on without one.

Pure. RouteLLM (arXiv 2406.18665), causal LLM classifier. The judge itself is asked by the pipeline.
"""

from __future__ import annotations

from semroute_extproc.config.models import JudgeStrategy, ThresholdStrategy
from semroute_extproc.encoder.bundle import DifficultyHead
from semroute_extproc.policy.context import Candidates, Choice, RoutingContext, Strategy
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.cutoff import Cutoff, share_for_threshold
from semroute_extproc.strategies.threshold import Threshold

UNIFORM = tuple(n / 100 for n in range(101))
"""Scores of a judge of whom nothing is known: a quality q means the threshold 1 - q."""


class Judge(Strategy):
    """Strong if the judge's score ≥ t; where it gave none, the same share by the bundle's difficulty."""

    needs_signals = True
    hard_preferences = True

    def __init__(
        self, name: str, settings: JudgeStrategy, head: DifficultyHead, calibration: Calibration | None = None
    ) -> None:
        self.name = name
        quantiles = UNIFORM if calibration is None else calibration.quantiles
        share = settings.strong_share
        if calibration is not None and settings.max_quality_drop is not None:
            share = calibration.share_for_drop(settings.max_quality_drop)
        self._cutoff = Cutoff(
            settings.weak,
            settings.strong,
            quantiles,
            share=share,
            threshold=settings.threshold,
            what="judge's score",
        )
        if calibration is not None and settings.threshold is not None:
            share = share_for_threshold(quantiles, settings.threshold)
        # Both scores are probabilities of the same event, so without a calibration the threshold is kept.
        fallback = ThresholdStrategy(
            kind="threshold",
            weak=settings.weak,
            strong=settings.strong,
            strong_share=share,
            threshold=settings.threshold if share is None else None,
            unsure=settings.unsure,
        )
        self._fallback = Threshold(fallback, head)

    def wants_judgement(self, facts: RoutingContext) -> bool:
        """Whether the judge is to be asked: not twice, and not where the client promised itself an end."""
        return self.name not in facts.judgements and not facts.hard_preference

    def choose(self, facts: RoutingContext, candidates: Candidates) -> Choice:
        """By the judge's score if there is one."""
        judgement = facts.judgements.get(self.name)
        if judgement is None or judgement.score is None:
            return self._fallback.choose(facts, candidates)
        return self._cutoff.choose(judgement.score, facts)

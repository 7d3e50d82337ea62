"""The threshold strategy: the strong pool from a difficulty on.

Pure. Hybrid LLM (arXiv 2404.14618) section 3; RouteLLM (arXiv 2406.18665) section 4.2 with its
BERT classifier.
"""

from __future__ import annotations

from semroute_extproc.config.models import ThresholdStrategy
from semroute_extproc.encoder.manifest import DifficultyHead
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.pair import Pair


class Threshold(Pair):
    """Strong if difficulty ≥ t, where t is given or a quantile of the bundle's reference traffic."""

    def __init__(
        self, settings: ThresholdStrategy, head: DifficultyHead, calibration: Calibration | None = None
    ) -> None:
        super().__init__(
            settings, lambda signals: signals.difficulty, head.quantiles, "difficulty", calibration
        )

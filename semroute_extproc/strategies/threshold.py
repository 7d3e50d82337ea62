"""Threshold: selects the strong pool at or above a difficulty.

Hybrid LLM (arXiv 2404.14618) section 3; RouteLLM (arXiv 2406.18665) section 4.2 with its BERT
classifier: strong if difficulty(q) ≥ t, where t is given or a quantile of the reference traffic.
"""

from operator import attrgetter
from typing import Literal

from semroute_extproc.strategies.idea import Site
from semroute_extproc.strategies.pair import Pair, PairSettings, Score

difficulty: Score = attrgetter("difficulty")


class ThresholdSettings(PairSettings):
    """Selects the strong pool by difficulty (Hybrid LLM section 3; RouteLLM section 4.2, BERT classifier)."""

    kind: Literal["threshold"]

    def compile(self, site: Site) -> Pair:
        """Compile for the bundle's difficulty; raises Unfit."""
        cutoff = self.cutoff(site, site.manifest.difficulty.quantiles, "difficulty")
        return Pair(difficulty, cutoff, self.on_unknown)

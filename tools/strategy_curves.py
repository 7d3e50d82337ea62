"""Draw docs/curves/ from the recorded evaluations: each strategy's own curve, as SVG.

    semroute eval pair … --json benchmarks/results/eval_pair.json
    semroute eval pool … --json benchmarks/results/eval_pool.json
    python tools/strategy_curves.py

docs/strategies.md has both commands in full.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from semroute_lab.evaluate.plots import STYLE, as_svg, pair_strategy, pool_strategy

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CURVES = ROOT / "docs" / "curves"

PAIR = ("weighted", "threshold", "similarity", "factorization", "clusters", "intent", "judge")
"""Strategies with a curve on the pair."""

POOL = ("clusters", "intent")
"""Strategies of any number of pools."""

PUBLISHED = [(0.3549, 0.5), (0.7031, 0.8)]
"""CPT50 and CPT80 of RouteLLM's causal LLM classifier (arXiv 2406.18665, table 2, MMLU with gold labels)."""


def main() -> int:
    """Write every figure."""
    pair, pool = (json.loads((RESULTS / f"eval_{name}.json").read_text()) for name in ("pair", "pool"))
    CURVES.mkdir(exist_ok=True)
    measured = {row["strategy"] for row in pair["routers"]}
    with mpl.rc_context(STYLE):
        for kind in PAIR:
            missing = kind not in measured
            figure = pair_strategy(pair, kind, PUBLISHED if missing else (), "published by RouteLLM")
            (CURVES / f"{kind}.svg").write_text(as_svg(figure))
        for kind in POOL:
            figure = pool_strategy(pool["settings"]["random models"], kind)
            (CURVES / f"{kind}_pool.svg").write_text(as_svg(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())

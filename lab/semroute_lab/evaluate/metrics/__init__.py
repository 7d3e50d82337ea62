"""Metrics of routing and classification; pure numpy, each with its formula and its source.

`pair` two models and one score; `classification` labels, calibration and detection;
`deferral` pools of many models; `resampling` intervals for all of them.
"""

from semroute_lab.evaluate.metrics.classification import (
    abstention_curve,
    accuracy,
    auroc,
    binary_ece,
    confusion_matrix,
    ece,
    ece_if_calibrated,
    fpr_at_tpr,
    macro_f1,
    reliability,
    spearman,
)
from semroute_lab.evaluate.metrics.deferral import (
    DeferralCurve,
    area,
    deferral_curve,
    hull,
    pair_curve,
    peak,
    qnc,
)
from semroute_lab.evaluate.metrics.pair import (
    Curve,
    apgr,
    cpt,
    cpt_exact,
    decile_curve,
    exact_curve,
    oracle_curve,
    oracle_score,
    pgr,
    quality_drop,
    within_groups,
)
from semroute_lab.evaluate.metrics.resampling import (
    Estimate,
    bootstrap,
    bootstrap_lift,
    bootstrap_pair,
    estimate,
    resamples,
)

__all__ = [
    "Curve",
    "DeferralCurve",
    "Estimate",
    "abstention_curve",
    "accuracy",
    "apgr",
    "area",
    "auroc",
    "binary_ece",
    "bootstrap",
    "bootstrap_lift",
    "bootstrap_pair",
    "confusion_matrix",
    "cpt",
    "cpt_exact",
    "decile_curve",
    "deferral_curve",
    "ece",
    "ece_if_calibrated",
    "estimate",
    "exact_curve",
    "fpr_at_tpr",
    "hull",
    "macro_f1",
    "oracle_curve",
    "oracle_score",
    "pair_curve",
    "peak",
    "pgr",
    "qnc",
    "quality_drop",
    "reliability",
    "resamples",
    "spearman",
    "within_groups",
]

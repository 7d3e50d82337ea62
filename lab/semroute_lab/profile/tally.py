"""From graded answers to a profile, and how sure a profile is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from semroute_extproc.strategies.artifact import Floats
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import FEW_ANSWERS, Profile, is_thin

Z = 1.959963984540054  # Of the normal distribution for 95 %


def interval(errors: float, answers: float) -> tuple[float, float]:
    """The 95 % interval of an error rate by Wilson (1927), (0, 1) without an answer.
    For graded answers and shared-out counts it is wider than need be, never narrower: a quality between 0 and
    1 varies less than a coin of the same mean.
    """
    if answers <= 0.0:
        return 0.0, 1.0
    p = min(max(errors / answers, 0.0), 1.0)
    below = 1.0 + Z**2 / answers
    middle = (p + Z**2 / (2.0 * answers)) / below
    half = Z * math.sqrt(p * (1.0 - p) / answers + Z**2 / (4.0 * answers**2)) / below
    return max(middle - half, 0.0), min(middle + half, 1.0)


def certainty(profile: Profile, clusterings: int = 1) -> str:
    """In one or two sentences, how far the profile can be trusted.
    With several clusterings every answer is counted once in each.
    """
    answers = np.asarray(profile.answers)
    low, high = interval(sum(profile.errors) / clusterings, float(answers.sum()) / clusterings)
    overall = f"{profile.model}: error {profile.mean_error:.2f} overall ({low:.2f} to {high:.2f}, 95 %)"
    few = answers < FEW_ANSWERS
    if not is_thin(profile):
        pairs = [interval(e, n) for e, n in zip(profile.errors, answers.tolist(), strict=True)]
        widest = max(high - low for low, high in pairs) / 2
        return f"{overall}; in a single cluster it is known to within ±{widest:.2f} or better."
    none = int((answers <= 0.0).sum())
    untouched = f", {none} of them none at all" if none else ""
    low, high = interval(FEW_ANSWERS / 2, FEW_ANSWERS)
    return (
        f"{overall}. Warning: {int(few.sum())} of {len(answers)} clusters have fewer than {FEW_ANSWERS} "
        f"answers{untouched}; there its error may be off by {(high - low) / 2:.2f} or more, and routing "
        "leans on its overall error instead. More questions of these kinds would tell its strengths apart."
    )


def tally(
    clusters: ClustersArtifact,
    x: Floats,
    errors: Sequence[float],
    output_tokens: Sequence[float | None],
    *,
    model: str,
    created: str = "",
    source: str = "",
) -> Profile:
    """The profile of a model from its graded answers to prompts with embeddings `x` (n, d).
    `errors` (n,) are 0..1; `output_tokens` (n,) or empty. With several clusterings an answer counts once in
    each; with a learned map it is shared out by membership.
    """
    share = clusters.membership(x).astype(np.float64) * clusters.clusterings
    wrong = np.asarray(errors, dtype=np.float64)
    tokens: list[float | None] = []
    if len(output_tokens):
        counted = np.asarray([value is not None for value in output_tokens])
        values = np.asarray([value or 0.0 for value in output_tokens], dtype=np.float64)
        mass = share[counted].sum(axis=0)
        total = values[counted] @ share[counted]
        tokens = [float(t / m) if m > 1e-6 else None for t, m in zip(total, mass, strict=True)]
    return Profile(
        model=model,
        clusters=clusters.digest,
        answers=tuple(share.sum(axis=0).tolist()),
        errors=tuple((wrong @ share).tolist()),
        output_tokens=tuple(tokens),
        created=created,
        source=source,
    )

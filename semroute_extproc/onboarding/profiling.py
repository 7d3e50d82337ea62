"""Graded answers to a profile: counts by cluster, intervals, and how sure they are, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semroute_extproc.artefacts import Clusters
from semroute_extproc.bundle import Bundle
from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import ArtefactError
from semroute_extproc.onboarding.asking import Reply
from semroute_extproc.onboarding.graders import Grade
from semroute_extproc.profiles import Profile, Seen, tally

Z = 1.959963984540054
"""Of the normal distribution for 95 %."""

FEW_ANSWERS = 10
"""Fewer answers in a cluster than this leave its error open by a quarter either way."""

Floats = npt.NDArray[np.float32]


def interval(errors: float, answers: float) -> tuple[float, float]:
    """The 95 % interval of an error rate by Wilson (1927), (0, 1) without an answer.

    For graded answers and shared-out counts it is wider than need be, never narrower: a quality
    between 0 and 1 varies less than a coin of the same mean.
    """
    if answers <= 0.0:
        return 0.0, 1.0
    p = min(max(errors / answers, 0.0), 1.0)
    below = 1.0 + Z**2 / answers
    middle = (p + Z**2 / (2.0 * answers)) / below
    half = Z * math.sqrt(p * (1.0 - p) / answers + Z**2 / (4.0 * answers**2)) / below
    return max(middle - half, 0.0), min(middle + half, 1.0)


def check_bundle(path: Path, clusters: Clusters, bundle: Bundle) -> None:
    """Raise ArtefactError unless the clusters were fitted on this bundle's embedding."""
    wanted = f"{clusters.manifest.bundle} {clusters.manifest.revision}"
    given = f"{bundle.manifest.name} {bundle.revision}"
    if wanted != given:
        raise ArtefactError(f"{path}: fitted on the embedding of bundle {wanted}; this one is {given}")


def embed(scorer: Scorer, texts: Sequence[str], advance: Callable[[], None] = lambda: None) -> Floats:
    """The embeddings that clusters are found with, shape (n, d)."""
    rows: list[Floats] = []
    for signals in scorer.score_all(texts):
        assert signals.neighbours is not None
        rows.append(signals.neighbours)
        advance()
    return np.stack(rows)


def with_intervals(profile: Profile) -> Profile:
    """The profile with the interval of every cluster's error, None where there are no answers."""
    pairs = zip(profile.errors, profile.answers, strict=True)
    found = tuple(tuple(round(x, 4) for x in interval(e, n)) if n > 0.0 else None for e, n in pairs)
    return profile.model_copy(update={"intervals": found})


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of questions gave, in the order of the questions."""

    texts: Sequence[str]
    replies: Sequence[Reply | None]
    grades: Sequence[Grade | None]
    concurrency: int


def profile_of(run: Run, clusters: Clusters, x: Floats, *, model: str, created: str, source: str) -> Profile:
    """The profile of a run; `x` (n, d) are the embeddings of its texts. Ungraded questions are left out."""
    rows = [row for row, grade in enumerate(run.grades) if grade is not None]
    graded = [(run.replies[row], run.grades[row]) for row in rows]
    replies = [reply for reply, _ in graded if reply is not None]
    grades = [grade for _, grade in graded if grade is not None]
    tokens = [reply.output_tokens for reply in replies]
    profile = tally(
        clusters,
        x[rows],
        [1.0 - grade.quality for grade in grades],
        tokens if any(count is not None for count in tokens) else [],
        model=model,
        created=created,
        source=source,
    )
    seconds = np.asarray([reply.seconds for reply in replies])
    total = sum(count or 0 for count in tokens)
    seen = Seen(
        answers=len(replies),
        failed=len(run.grades) - len(rows),
        unparsed=sum(not grade.parsed for grade in grades),
        cut=sum(reply.finish == "length" for reply in replies),
        concurrency=run.concurrency,
        seconds_p50=round(float(np.quantile(seconds, 0.5)), 4),
        seconds_p90=round(float(np.quantile(seconds, 0.9)), 4),
        tokens_per_second=round(float(total / max(seconds.sum(), 1e-9)), 2),
    )
    return with_intervals(profile).model_copy(update={"seen": seen})


def certainty(profile: Profile, clusterings: int = 1) -> str:
    """In one or two sentences, how far the profile can be trusted.

    With several clusterings every answer is counted once in each.
    """
    answers = np.asarray(profile.answers)
    low, high = interval(sum(profile.errors) / clusterings, float(answers.sum()) / clusterings)
    overall = f"{profile.model}: error {profile.mean_error:.2f} overall ({low:.2f} to {high:.2f}, 95 %)"
    few = answers < FEW_ANSWERS
    if not few.any():
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

"""Graded answers to a profile: counts by cluster, intervals, and what was seen of the endpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import ArtifactError, DataError
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import Profile, Seen
from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import Grade
from semroute_lab.profile.tally import interval, tally

Floats = npt.NDArray[np.float32]


def check_bundle(path: Path, clusters: ClustersArtifact, bundle: Bundle) -> None:
    """Raise ArtifactError unless the clusters were fitted on this bundle's embedding."""
    wanted = f"{clusters.manifest.bundle} {clusters.manifest.revision}"
    given = f"{bundle.manifest.name} {bundle.revision}"
    if wanted != given:
        raise ArtifactError(f"{path}: fitted on the embedding of bundle {wanted}; this one is {given}")


def embed(
    scorer: Scorer, texts: Sequence[str], advance: Callable[[], None] = lambda: None
) -> tuple[list[int], Floats]:
    """The rows that the default bundle reads, and their embeddings for clusters, shape (rows, d).

    Texts in a language with a bundle of its own are left out: serving finds no cluster for them.
    Raises DataError if none is left.
    """
    rows: list[int] = []
    vectors: list[Floats] = []
    for row, signals in enumerate(scorer.score_all(texts)):
        advance()
        if signals.revision == scorer.bundle.revision and signals.neighbours is not None:
            rows.append(row)
            vectors.append(signals.neighbours)
    if not rows:
        raise DataError(f"no text is in a language of bundle {scorer.bundle.manifest.name}")
    return rows, np.stack(vectors)


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


def profile_of(
    run: Run, clusters: ClustersArtifact, x: Floats, *, model: str, created: str, source: str
) -> Profile:
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

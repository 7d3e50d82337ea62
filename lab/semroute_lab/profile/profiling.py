"""Graded answers to a profile: counts by cluster, intervals, and observations of the endpoint."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.profiles import Profile, Seen
from semroute_lab.common.metrics import Vectors
from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import Grade
from semroute_lab.profile.tally import interval, tally


def open_clusters(path: Path, bundle_dir: Path | None) -> tuple[ClustersArtifact, Scorer]:
    """The artifact and the bundle it was fitted with; raises ArtifactError or BundleError."""
    clusters, scorer = read_clusters(path), Scorer.of(bundle_dir)
    wanted = f"{clusters.manifest.bundle} {clusters.manifest.revision}"
    given = f"{scorer.bundle.manifest.name} {scorer.bundle.revision}"
    if wanted != given:
        raise ArtifactError(f"{path}: fitted on the embedding of bundle {wanted}; this one is {given}")
    return clusters, scorer


def profile_of(
    clusters: ClustersArtifact,
    x: Vectors,
    quality: Sequence[float | None],
    tokens: Sequence[float | None],
    *,
    model: str,
    source: str,
    seen: Seen | None = None,
) -> Profile:
    """The profile of answers to prompts with embeddings `x` (n, d); those without a quality do not count.
    `quality` (n,) is 0..1, `tokens` (n,) are those of each answer, or empty.
    """
    rows = [row for row, each in enumerate(quality) if each is not None]
    counts = [tokens[row] for row in rows] if tokens else []
    profile = tally(
        clusters,
        x[rows],
        [1.0 - each for each in quality if each is not None],
        counts if any(count is not None for count in counts) else [],
        model=model,
        created=datetime.datetime.now(datetime.UTC).date().isoformat(),
        source=source,
    )
    pairs = zip(profile.errors, profile.answers, strict=True)
    intervals = tuple(tuple(round(x, 4) for x in interval(e, n)) if n > 0.0 else None for e, n in pairs)
    return profile.model_copy(update={"intervals": intervals, "seen": seen})


def seen_of(replies: Sequence[Reply | None], grades: Sequence[Grade | None], concurrency: int) -> Seen:
    """Speed and failures of a run, from the replies that have a grade."""
    pairs = [(r, g) for r, g in zip(replies, grades, strict=True) if r is not None and g is not None]
    seconds = np.asarray([reply.seconds for reply, _ in pairs])
    total = sum(reply.output_tokens or 0 for reply, _ in pairs)
    return Seen(
        answers=len(pairs),
        failed=len(grades) - len(pairs),
        unparsed=sum(not grade.parsed for _, grade in pairs),
        cut=sum(reply.finish == "length" for reply, _ in pairs),
        concurrency=concurrency,
        seconds_p50=round(float(np.quantile(seconds, 0.5)), 4),
        seconds_p90=round(float(np.quantile(seconds, 0.9)), 4),
        tokens_per_second=round(float(total / max(seconds.sum(), 1e-9)), 2),
    )

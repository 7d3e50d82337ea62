"""From graded answers to a profile, and how certain a profile is."""

import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semroute_extproc.errors import ArtifactError
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.strategies.artifact import Floats
from semroute_extproc.strategies.clusters import ClustersArtifact, read_clusters
from semroute_extproc.strategies.profiles import FEW_ANSWERS, Profile, is_thin
from semroute_lab.common.metrics import Floats as Doubles
from semroute_lab.profile.asking import Reply
from semroute_lab.profile.graders import Grade

Z = 1.959963984540054  # Of the normal distribution for 95 %
BAR_CHARACTERS = 10  # Width of a bar that is full: two models fit a terminal of 80 columns
FIGURES = {  # Keys of a profile's `seen`
    *("answers", "failed", "unparsed", "cut", "concurrency"),
    *("seconds_p50", "seconds_p90", "tokens_per_second"),
}
SIDE_BY_SIDE = 2  # With more models only the width of intervals is shown, not their ends
_EIGHTHS = " ▏▎▍▌▋▊▉"


def interval(errors: float, answers: float) -> tuple[float, float]:
    """The 95 % interval of an error rate by Wilson (1927), (0, 1) without an answer.
    It is conservative for graded answers: a quality in 0..1 varies no more than a 0/1 outcome.
    """
    if answers <= 0.0:
        return 0.0, 1.0
    p = min(max(errors / answers, 0.0), 1.0)
    below = 1.0 + Z**2 / answers
    middle = (p + Z**2 / (2.0 * answers)) / below
    half = Z * math.sqrt(p * (1.0 - p) / answers + Z**2 / (4.0 * answers**2)) / below
    return max(middle - half, 0.0), min(middle + half, 1.0)


def certainty(profile: Profile, clusterings: int = 1) -> str:
    """How far the profile can be trusted; with several clusterings every answer is counted once in each."""
    answers = np.asarray(profile.answers)
    low, high = interval(sum(profile.errors) / clusterings, float(answers.sum()) / clusterings)
    overall = f"{profile.model}: error {profile.mean_error:.2f} overall ({low:.2f} to {high:.2f}, 95 %)"
    if not is_thin(profile):
        pairs = [interval(e, n) for e, n in zip(profile.errors, answers.tolist(), strict=True)]
        widest = max(high - low for low, high in pairs) / 2
        return f"{overall}; in every cluster the error is known to within ±{widest:.2f}."
    few, none = int((answers < FEW_ANSWERS).sum()), int((answers <= 0.0).sum())
    untouched = f", {none} of them none" if none else ""
    low, high = interval(FEW_ANSWERS / 2, FEW_ANSWERS)
    return (
        f"{overall}. Warning: {few} of {len(answers)} clusters have fewer than {FEW_ANSWERS} "
        f"answers{untouched}; there the error may be off by {(high - low) / 2:.2f} or more, and routing "
        "relies on the overall error instead. More questions of these kinds would narrow this down."
    )


def sums_of(
    clusters: ClustersArtifact, x: Floats, errors: Sequence[float], output_tokens: Sequence[float | None]
) -> Doubles:
    """Answers, errors, answers with known tokens, and tokens, of each cluster; (4, k).

    The answers are to prompts with embeddings `x` (n, d); `errors` (n,) are 0..1, `output_tokens` (n,) or
    empty. An answer is split among clusters by membership.
    """
    share = clusters.membership(x).astype(np.float64) * clusters.clusterings
    tokens = np.asarray(output_tokens if len(output_tokens) else [np.nan] * len(x), dtype=np.float64)
    known = np.isfinite(tokens)
    wrong = np.asarray(errors, dtype=np.float64) @ share
    return np.stack([share.sum(axis=0), wrong, share[known].sum(axis=0), tokens[known] @ share[known]])


def profile_of_sums(clusters: ClustersArtifact, sums: Doubles, **about: str) -> Profile:
    """The profile of the sums of all answers."""
    answers, errors, mass, total = sums
    known = [float(t / m) if m > 1e-6 else None for t, m in zip(total, mass, strict=True)]
    return Profile(
        clusters=clusters.digest,
        answers=tuple(answers.tolist()),
        errors=tuple(errors.tolist()),
        output_tokens=tuple(known) if mass.any() else (),
        **about,
    )


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
    x: Floats,
    quality: Sequence[float | None],
    tokens: Sequence[float | None],
    *,
    model: str,
    source: str,
    seen: Mapping[str, int | float] | None = None,
) -> Profile:
    """The profile of answers with a `quality` (n,) 0..1 or None; `tokens` are (n,) or empty."""
    rows = [row for row, each in enumerate(quality) if each is not None]
    errors = [1.0 - each for each in quality if each is not None]
    counts = [tokens[row] for row in rows] if tokens else []
    return dated(clusters, sums_of(clusters, x[rows], errors, counts), model, source, seen)


def dated(
    clusters: ClustersArtifact,
    sums: Doubles,
    model: str,
    source: str,
    seen: Mapping[str, int | float] | None = None,
) -> Profile:
    """The profile of today, with intervals."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    profile = profile_of_sums(clusters, sums, model=model, created=today, source=source)
    pairs = zip(profile.errors, profile.answers, strict=True)
    intervals = tuple(tuple(round(x, 4) for x in interval(e, n)) if n > 0.0 else None for e, n in pairs)
    return profile.model_copy(update={"intervals": intervals, "seen": seen})


def seen_of(
    replies: Sequence[Reply | None], grades: Sequence[Grade | None], concurrency: int
) -> dict[str, int | float]:
    """Speed and failures of a run, from the replies that have a grade."""
    pairs = [(r, g) for r, g in zip(replies, grades, strict=True) if r is not None and g is not None]
    seconds = np.asarray([reply.seconds for reply, _ in pairs])
    total = sum(reply.output_tokens or 0 for reply, _ in pairs)
    return {
        "answers": len(pairs),
        "failed": len(grades) - len(pairs),  # questions without an answer, left out of the counts
        "unparsed": sum(not grade.parsed for _, grade in pairs),  # counted as wrong
        "cut": sum(reply.finish == "length" for reply, _ in pairs),  # ended at the maximum of tokens
        "concurrency": concurrency,  # questions at once; the times below hold for this load
        "seconds_p50": round(float(np.quantile(seconds, 0.5)), 4),
        "seconds_p90": round(float(np.quantile(seconds, 0.9)), 4),
        "tokens_per_second": round(float(total / max(seconds.sum(), 1e-9)), 2),
    }


def check_alike(
    paths: Sequence[Path], profiles: Sequence[Profile], clusters: ClustersArtifact | None
) -> None:
    """Raise ArtifactError unless all profiles are complete and count in the same clusters, those given."""
    wanted = clusters.digest if clusters is not None else profiles[0].clusters
    for path, profile in zip(paths, profiles, strict=True):
        if profile.seen is not None and profile.seen.keys() != FIGURES:
            raise ArtifactError(f"{path}: seen: expected {', '.join(sorted(FIGURES))}")
        if profile.clusters != wanted:
            what = "the artifact given" if clusters is not None else str(paths[0])
            counts = f"counts in the clusters {profile.clusters}, {what} in {wanted}"
            raise ArtifactError(f"{path}: {counts}: not comparable")


def report(profiles: Sequence[Profile], clusters: ClustersArtifact | None) -> dict[str, Any]:
    """Everything as JSON: by model, and by cluster the strength (1 - error) with its interval."""
    clusterings = clusters.clusterings if clusters is not None else 1
    names = [f"cluster {k}" for k in range(len(profiles[0].answers))] if clusters is None else clusters.names
    return {
        "clusters": profiles[0].clusters,
        "models": [
            {
                "model": profile.model,
                "strength": 1.0 - profile.mean_error,
                "answers": sum(profile.answers) / clusterings,
                "certainty": certainty(profile, clusterings),
                "created": profile.created,
                "source": profile.source,
                "seen": profile.seen,
                "by_cluster": [_cell(profile, k, name) for k, name in enumerate(names)],
            }
            for profile in profiles
        ],
    }


def _cell(profile: Profile, k: int, name: str) -> dict[str, Any]:
    errors, answers = profile.errors[k], profile.answers[k]
    low, high = interval(errors, answers)
    return {
        "cluster": name,
        "answers": answers,
        "strength": 1.0 - errors / answers if answers > 0.0 else None,
        "interval": [1.0 - high, 1.0 - low] if answers > 0.0 else None,
        "output_tokens": profile.output_tokens[k] if profile.output_tokens else None,
    }


def draw(models: Sequence[dict[str, Any]], console: Console) -> None:
    """A table with a bar per model and cluster; with several models, sorted by how much they differ."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("cluster", overflow="fold", min_width=12, max_width=36)
    for model in models:
        table.add_column(model["model"], no_wrap=True)
    rows = list(zip(*(model["by_cluster"] for model in models), strict=True))
    for cells in sorted(rows, key=_agreement) if len(models) > 1 else rows:
        table.add_row(cells[0]["cluster"], *(_bar(cell, len(models)) for cell in cells))
    console.print(table)
    console.print()
    for model in models:
        console.print(model["certainty"])
        if seen := model["seen"]:
            counts = f"{seen['failed']} failed, {seen['unparsed']} unreadable, {seen['cut']} cut"
            pace = f"p50 {seen['seconds_p50']:.2f} s, p90 {seen['seconds_p90']:.2f} s"
            console.print(
                f"  {seen['answers']} answers ({counts}), {seen['concurrency']} at once: {pace}, "
                f"{seen['tokens_per_second']:.0f} tokens/s each"
            )


def _agreement(cells: Sequence[dict[str, Any]]) -> float:
    known = [cell["strength"] for cell in cells if cell["strength"] is not None]
    return min(known) - max(known) if len(known) > 1 else 0.0


def _bar(cell: dict[str, Any], models: int) -> Text:
    if cell["strength"] is None:
        return Text("no answers", style="dim")
    low, high = cell["interval"]
    eighths = round(cell["strength"] * BAR_CHARACTERS * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    ends = f"[{low:.2f}, {high:.2f}]" if models <= SIDE_BY_SIDE else f"±{(high - low) / 2:.2f}"
    figures = f" {cell['strength']:.2f} {ends} {cell['answers']:.0f}"
    style = "dim" if cell["answers"] < FEW_ANSWERS else ""
    return Text.assemble((bar.ljust(BAR_CHARACTERS), style or "cyan"), (figures, style))

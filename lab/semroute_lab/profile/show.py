"""Profiles as tables: how often each model is right, cluster by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import FEW_ANSWERS, Profile
from semroute_lab.profile.tally import certainty, interval

BAR_CHARACTERS = 10  # Width of a bar that is full: two models fit a terminal of 80 columns
SIDE_BY_SIDE = 2  # With more models only the width of intervals is shown, not their ends
_EIGHTHS = " ▏▎▍▌▋▊▉"


def check_alike(
    paths: Sequence[Path], profiles: Sequence[Profile], clusters: ClustersArtifact | None
) -> None:
    """Raise ArtifactError unless all profiles count in the same clusters, those given."""
    wanted = clusters.digest if clusters is not None else profiles[0].clusters
    for path, profile in zip(paths, profiles, strict=True):
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
                "seen": profile.seen.model_dump() if profile.seen is not None else None,
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
    """A table with a bar for every model in every cluster; where several differ most comes first."""
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
    # A bar with any strength shows at least one eighth: only a missing one is empty.
    eighths = round(cell["strength"] * BAR_CHARACTERS * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    ends = f"[{low:.2f}, {high:.2f}]" if models <= SIDE_BY_SIDE else f"±{(high - low) / 2:.2f}"
    figures = f" {cell['strength']:.2f} {ends} {cell['answers']:.0f}"
    style = "dim" if cell["answers"] < FEW_ANSWERS else ""
    return Text.assemble((bar.ljust(BAR_CHARACTERS), style or "cyan"), (figures, style))

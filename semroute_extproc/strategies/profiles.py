"""What a model is good at: its errors by cluster, one JSON file for each model.

UniRoute (arXiv 2502.08773, section 4) represents a model by its mean error on validation prompts in
every cluster, so a new model joins by answering some prompts, without any training. A profile keeps
the counts instead of the means: the strategy that reads it shrinks them, and knows how sure they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from semroute_extproc.io.files import read_json, write_json
from semroute_extproc.strategies.artifacts import CLUSTERS_MAX, Clusters

FORMAT = 1
"""The profile format this package reads and writes."""

FILE_BYTES_MAX = 4 * 1024 * 1024
"""Largest profile."""

PROFILES_MAX = 256
"""Most profiles of a directory; further files are not read."""

Z = 1.959963984540054
"""Of the normal distribution for 95 %."""

FEW_ANSWERS = 10
"""Fewer answers in a cluster than this leave its error open by a quarter either way."""

Floats = npt.NDArray[np.float32]


class Seen(BaseModel):
    """What was seen of an endpoint while its model was profiled; for people, routing does not read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: int = Field(ge=0)
    failed: int = Field(ge=0)
    """Questions without an answer, left out of the counts."""
    unparsed: int = Field(ge=0)
    """Answers in which no answer could be found, counted as wrong."""
    cut: int = Field(ge=0)
    """Answers that ended at the maximum of tokens."""
    concurrency: int = Field(ge=1)
    """Questions at once; the times below hold for this load."""
    seconds_p50: float = Field(ge=0)
    seconds_p90: float = Field(ge=0)
    """Of a whole answer."""
    tokens_per_second: float = Field(ge=0)
    """Of one answer, on average."""


class Profile(BaseModel):
    """A model's answers and errors in each cluster of one `clusters` artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = FORMAT
    model: str = Field(min_length=1)
    """The model as its pool names it."""
    clusters: str = Field(pattern="^[0-9a-f]{12}$")
    """`Clusters.digest` of the artifact whose clusters these are."""
    answers: tuple[float, ...] = Field(min_length=1, max_length=CLUSTERS_MAX)
    """Graded answers in each cluster; fractions where membership is soft."""
    errors: tuple[float, ...]
    """Sum of their errors (0 right, 1 wrong, anything between for graded answers)."""
    output_tokens: tuple[float | None, ...] = ()
    """Mean tokens of an answer in each cluster, None where unknown; empty if unknown everywhere."""
    intervals: tuple[tuple[float, float] | None, ...] = ()
    """95 % interval of the error in each cluster, None without answers; for people, routing does not
    read it."""
    seen: Seen | None = None
    created: str = ""
    """ISO date."""
    source: str = ""
    """The file or endpoint it was made from."""

    @model_validator(mode="after")
    def _fits(self) -> Profile:
        if len(self.errors) != len(self.answers):
            raise ValueError(f"{len(self.errors)} errors for {len(self.answers)} clusters")
        if self.output_tokens and len(self.output_tokens) != len(self.answers):
            raise ValueError(f"{len(self.output_tokens)} output_tokens for {len(self.answers)} clusters")
        if self.intervals and len(self.intervals) != len(self.answers):
            raise ValueError(f"{len(self.intervals)} intervals for {len(self.answers)} clusters")
        for index, (wrong, answers) in enumerate(zip(self.errors, self.answers, strict=True)):
            # Sums of float32 shares: equal up to rounding.
            if not 0.0 <= wrong <= answers * (1.0 + 1e-4) + 1e-4:
                raise ValueError(f"cluster {index}: {wrong:g} errors in {answers:g} answers")
        if not sum(self.answers) > 0.0:
            raise ValueError("no answers at all")
        if any(tokens is not None and not tokens >= 0.0 for tokens in self.output_tokens):
            raise ValueError("output_tokens below 0")
        return self

    @property
    def mean_error(self) -> float:
        """The model's error over all its answers."""
        return sum(self.errors) / sum(self.answers)


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


def is_thin(profile: Profile) -> bool:
    """Whether there are clusters with too few answers to say much."""
    return min(profile.answers) < FEW_ANSWERS


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
    clusters: Clusters,
    x: Floats,
    errors: Sequence[float],
    output_tokens: Sequence[float | None],
    *,
    model: str,
    created: str = "",
    source: str = "",
) -> Profile:
    """The profile of a model from its graded answers to prompts with embeddings `x` (n, d).

    `errors` (n,) are 0..1; `output_tokens` (n,) or empty. With several clusterings an answer counts
    once in each; with a learned map it is shared out by membership.
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


def read_profile(path: Path) -> Profile:
    """Read one profile; raises ArtifactError, naming the file and what is wrong."""
    return read_json(path, Profile, FILE_BYTES_MAX, "profile")


def write_profile(path: Path, profile: Profile) -> None:
    """Write `path` whole or not at all, so that a server watching its directory never reads a part."""
    write_json(path, profile)

"""What a model is good at: its errors by cluster, one JSON file for each model.

UniRoute (arXiv 2502.08773, section 4) represents a model by its mean error on validation prompts in
every cluster, so a new model joins by answering some prompts, without any training. A profile keeps
the counts instead of the means: the strategy that reads it shrinks them, and knows how sure they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semroute_extproc.artefacts import CLUSTERS_MAX, Clusters
from semroute_extproc.errors import ArtefactError

FORMAT = 1
"""The profile format this package reads and writes."""

FILE_BYTES_MAX = 4 * 1024 * 1024
"""Largest profile."""

Floats = npt.NDArray[np.float32]


class Profile(BaseModel):
    """A model's answers and errors in each cluster of one `clusters` artefact."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    model: str = Field(min_length=1)
    """The model as its pool names it."""
    clusters: str = Field(pattern="^[0-9a-f]{12}$")
    """`Clusters.digest` of the artefact whose clusters these are."""
    answers: tuple[float, ...] = Field(min_length=1, max_length=CLUSTERS_MAX)
    """Graded answers in each cluster; fractions where membership is soft."""
    errors: tuple[float, ...]
    """Sum of their errors (0 right, 1 wrong, anything between for graded answers)."""
    output_tokens: tuple[float | None, ...] = ()
    """Mean tokens of an answer in each cluster, None where unknown; empty if unknown everywhere."""
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
    """Read one profile; raises ArtefactError, naming the file and what is wrong."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ArtefactError(f"{path}: more than {FILE_BYTES_MAX} bytes")
        profile = Profile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtefactError(f"{path}: no such file") from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ArtefactError(f"{path}: {place + ': ' if place else ''}{message}") from None
    if profile.format != FORMAT:
        raise ArtefactError(f"{path}: format {profile.format} is not {FORMAT}, the one this version reads")
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    """Write `path` whole or not at all, so that a server watching its directory never reads a part."""
    aside = path.with_name(f".{path.name}.part")
    text = json.dumps(profile.model_dump(mode="json"), ensure_ascii=False, indent=1, allow_nan=False)
    try:
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ArtefactError(f"{path}: cannot be written: {error.strerror or error}") from None

"""Strategies: one model of settings each, told apart by `kind`.

Pure.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from semroute_extproc.settings.base import FilePath, Model, Name


class PairStrategy(Model):
    """Weak or strong by one score; how much goes to the strong pool is said in one of three ways."""

    weak: str = Field(description="The cheaper pool.")
    strong: str = Field(description="The dearer pool.")
    strong_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share that goes to the strong pool: of the calibration's prompts, else of the "
        "reference traffic.",
    )
    threshold: float | None = Field(None, ge=0, le=1, description="The score itself.")
    max_quality_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Least strong share that loses at most this part of always-strong's quality; "
        "needs a calibration with outcomes.",
    )
    calibration: FilePath | None = Field(
        None, description="File of `semroute calibrate`: the score and its outcome on your own prompts."
    )
    unsure: str | None = Field(None, description="Pool of texts the bundle does not know; default: strong.")

    @model_validator(mode="after")
    def _one_setting(self) -> Self:
        given = (self.strong_share, self.threshold, self.max_quality_drop)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of strong_share, threshold and max_quality_drop")
        if self.max_quality_drop is not None and self.calibration is None:
            raise ValueError("max_quality_drop needs a calibration")
        if self.weak == self.strong:
            raise ValueError("weak and strong are the same pool")
        return self


class ThresholdStrategy(PairStrategy):
    """Strong from a difficulty on (Hybrid LLM section 3; RouteLLM section 4.2, BERT classifier)."""

    kind: Literal["threshold"]


class SimilarityStrategy(PairStrategy):
    """Strong where it won on similar prompts (RouteLLM section 4.2, similarity-weighted ranking)."""

    kind: Literal["similarity"]
    artifact: FilePath = Field(description="File of `semroute fit similarity`.")


class FactorizationStrategy(PairStrategy):
    """Strong by a bilinear model of models and prompts (RouteLLM section 4.2, matrix factorization)."""

    kind: Literal["factorization"]
    artifact: FilePath = Field(description="File of `semroute fit factorization`.")
    strong_model: str | None = Field(
        None, description="Name of the strong pool's model in the artifact; default: the pool's model."
    )
    weak_model: str | None = Field(
        None, description="Name of the weak pool's model in the artifact; default: the pool's model."
    )


class ClustersStrategy(Model):
    """The least expected error plus price among any number of pools (UniRoute)."""

    kind: Literal["clusters"]
    artifact: FilePath = Field(description="File of `semroute fit clusters`.")
    profiles: FilePath = Field(description="Directory of profiles, one `NAME.json` for each model.")
    pools: tuple[str, ...] | None = Field(
        None, min_length=1, description="Pools to choose from; default: all whose model has a profile."
    )
    estimate: Literal["shrunk", "laplace"] = Field(
        "shrunk", description="How counts become errors: towards the model's own mean, or by Laplace's rule."
    )
    shrinkage: float = Field(
        20.0, gt=0, description="Answers that the model's own mean counts for in every cluster."
    )
    quality: float = Field(
        0.5, ge=0, le=1, description="Trade-off where neither the client nor the model's entry sets one."
    )
    trade: float = Field(
        0.1,
        gt=0,
        le=100,
        description="λ at quality 0.5: expected error (0..1) that the dearest pool's price for a "
        "reference request outweighs.",
    )
    output_tokens: int = Field(
        300, gt=0, description="Tokens of an answer where the profile does not say and no maximum was asked."
    )
    unsure: str | None = Field(
        None, description="Pool of texts the bundle does not know; default: the least error overall."
    )


class JudgeStrategy(PairStrategy):
    """Strong by the score of a model that is asked for one token (RouteLLM, causal LLM classifier)."""

    kind: Literal["judge"]
    url: str = Field(
        pattern=r"^https?://[^\s/@]+(/|$)",
        description="The judge's own server, up to before `/chat/completions`: `http://judge:8000/v1`. Never "
        "the gateway: its requests would be judged in turn.",
    )
    model: Name = Field(description="The judge's name at that server.")
    labels: Literal["score", "choice"] = Field(
        "score", description="What it is asked for: `score`, 1 to 5 for the weak model; `choice`, A or B."
    )
    timeout_ms: float = Field(
        60, gt=0, le=10_000, description="How long it may take; must be below `server.deadline_ms`."
    )
    concurrency: int = Field(32, ge=1, le=1_024, description="Asked at once; more are decided without it.")
    cache_entries: int = Field(4_096, ge=0, le=1_048_576, description="Scores remembered; 0 for none.")
    cache_seconds: float = Field(3_600, gt=0, le=604_800, description="How long a score is remembered.")
    breaker_failures: int = Field(
        5, ge=1, le=1_000, description="Failures in a row after which it is left alone."
    )
    breaker_seconds: float = Field(
        10, gt=0, le=3_600, description="How long, before one request tries again."
    )
    api_key_env: str | None = Field(
        None, pattern="^[A-Za-z_][A-Za-z0-9_]*$", description="Variable that holds its bearer token."
    )
    ca_file: FilePath | None = Field(None, description="Certificates to trust instead of the system's.")
    reasoning: str = Field(
        "none", description="Its model family, so that its reasoning is switched off; see pools."
    )

    @model_validator(mode="after")
    def _share_of_what(self) -> Self:
        if self.strong_share is not None and self.calibration is None:
            raise ValueError("strong_share needs a calibration: nothing is known of this judge's scores")
        return self

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with whatever the judge's scores depend on."""
        told = f"{self.model} {self.labels} {self.reasoning}"
        return hashlib.sha256(told.encode()).hexdigest()[:12]


class IntentStrategy(Model):
    """Experts by domain; the unsure go to a generalist (Samba-CoE v0.3)."""

    kind: Literal["intent"]
    by: Literal["domain", "task"] = Field("domain", description="Which head chooses the expert.")
    experts: dict[str, str] = Field(min_length=1, description="Label to pool.")
    otherwise: str = Field(description="Pool of the labels without an expert.")
    unsure: str = Field(description="Pool of texts that are unknown or whose entropy is too high.")
    max_entropy: float = Field(
        0.6, gt=0, le=1, description="Abstain above this entropy, as a share of its maximum."
    )


class FixedStrategy(Model):
    """Always the same pool."""

    kind: Literal["fixed"]
    pool: str


Weight = Annotated[float, Field(ge=0)]


class WeightedStrategy(Model):
    """A canary: shares by weight, the same for the same request id."""

    kind: Literal["weighted"]
    weights: dict[str, Weight] | None = Field(None, min_length=1, description="Pool to weight.")
    strategies: dict[str, Weight] | None = Field(
        None, min_length=1, description="Strategy to weight, instead; none of them `weighted` by strategies."
    )

    @model_validator(mode="after")
    def _positive(self) -> WeightedStrategy:
        if (self.weights is None) == (self.strategies is None):
            raise ValueError("give exactly one of weights and strategies")
        if sum((self.weights or self.strategies or {}).values()) <= 0:
            raise ValueError("at least one weight must be positive")
        return self


Strategy = Annotated[
    ThresholdStrategy
    | SimilarityStrategy
    | FactorizationStrategy
    | JudgeStrategy
    | ClustersStrategy
    | IntentStrategy
    | FixedStrategy
    | WeightedStrategy,
    ThresholdStrategy | JudgeStrategy | IntentStrategy | FixedStrategy | WeightedStrategy,
    Field(discriminator="kind"),
]

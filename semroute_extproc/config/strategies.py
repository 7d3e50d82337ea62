"""Strategies: one model of settings each, told apart by `kind`.

Pure.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from semroute_extproc.config.base import Model


class ThresholdStrategy(Model):
    """Strong from a difficulty on (Hybrid LLM section 3; RouteLLM section 3.2)."""

    kind: Literal["threshold"]
    weak: str = Field(description="The cheaper pool.")
    strong: str = Field(description="The dearer pool.")
    strong_share: float | None = Field(
        None, ge=0, le=1, description="Share of the bundle's reference traffic that goes to the strong pool."
    )
    threshold: float | None = Field(None, ge=0, le=1, description="The difficulty itself.")
    unsure: str | None = Field(None, description="Pool of texts the bundle does not know; default: strong.")

    @model_validator(mode="after")
    def _one_setting(self) -> ThresholdStrategy:
        if (self.strong_share is None) == (self.threshold is None):
            raise ValueError("give exactly one of strong_share and threshold")
        if self.weak == self.strong:
            raise ValueError("weak and strong are the same pool")
        return self


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


Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
    ThresholdStrategy | IntentStrategy | FixedStrategy | WeightedStrategy, Field(discriminator="kind")
]

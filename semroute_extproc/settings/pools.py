"""Pools, and the model names that are routed to them. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from semroute_extproc.settings.base import POLICIES_MAX, FilePath, Model, Name, Share, several

ApiName = Literal["chat_completions", "completions", "responses", "messages", "embeddings"]
"""The values of `request.view.Api`."""

Gauge = Literal["running", "waiting", "kv_cache_usage"]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]{0,199}$")]
GaugeNames = Annotated[tuple[MetricName, ...], BeforeValidator(several), Field(min_length=1, max_length=8)]


class Price(Model):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output: float = Field(ge=0, description="Dollars per million completion tokens.")


class Pool(Model):
    """An Envoy cluster and the model that it serves."""

    cluster: Name = Field(description="Name of the Envoy cluster; only these clusters are ever selected.")
    model: Name = Field(description="Model name at that cluster; replaces the model name in the body.")
    price: Price | None = Field(None, description="Token prices; used to order pools by cost.")
    context: int = Field(32_768, gt=0, description="Context window in tokens, for prompt and answer.")
    clamp: bool = Field(False, description="Lower the answer's token limit to what the prompt leaves.")
    tokenizer: FilePath | None = Field(
        None, description="The model's tokenizer.json; counts the tokens of prompts near the context limit."
    )
    tools: bool = Field(True, description="The model can call tools.")
    images: bool = Field(False, description="The model can read images.")
    apis: tuple[ApiName, ...] = Field(
        ("chat_completions", "completions", "responses", "messages"), min_length=1, description="APIs served."
    )
    reasoning: str = Field("none", description="Reasoning family of the model; see docs/configuration.md.")
    metrics: str | None = Field(None, pattern=r"^https?://", description="URL of the vLLM metrics to scrape.")
    gauges: dict[Gauge, GaugeNames] = Field(
        {}, description="Metric names of each gauge; the first one found is used. Default: vLLM's names."
    )


class VirtualModel(Model):
    """A model name that clients request and that is routed."""

    policy: str = Field(description="Name of the policy that decides.")
    quality: Share | None = Field(None, description="Default quality, from 0 (cheapest) to 1 (best).")
    canary: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {}, max_length=POLICIES_MAX, description="Other policies and their shares, selected by request ID."
    )

    @model_validator(mode="after")
    def _shares(self) -> VirtualModel:
        if sum(self.canary.values()) > 1.0 + 1e-9:
            raise ValueError("the canary shares add up to more than 1")
        return self


def cost(pool: Pool, input_tokens: float, output_tokens: float) -> float:
    """Dollars for a request; 0 if the pool has no price."""
    if pool.price is None:
        return 0.0
    return (pool.price.input * input_tokens + pool.price.output * output_tokens) / 1e6

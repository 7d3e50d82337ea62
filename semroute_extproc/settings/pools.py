"""Pools, and the model names that are routed to them. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from semroute_extproc.settings.base import POLICIES_MAX, Model, Name, several


class Price(Model):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output: float = Field(ge=0, description="Dollars per million completion tokens.")


ApiName = Literal["chat_completions", "completions", "responses", "messages", "embeddings"]
"""The values of `request.view.Api`."""

Gauge = Literal["running", "waiting", "kv_cache_usage"]
"""The gauges of a pool's load that are read."""

GAUGE_NAMES_MAX = 8
"""Names tried for one gauge."""

MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]{0,199}$")]
GaugeNames = Annotated[
    tuple[MetricName, ...], BeforeValidator(several), Field(min_length=1, max_length=GAUGE_NAMES_MAX)
]


class Pool(Model):
    """An Envoy cluster and the model it serves."""

    cluster: Name = Field(description="Name of the Envoy cluster; the only clusters ever chosen.")
    model: Name = Field(description="The model's name at that cluster, written into the body.")
    price: Price | None = Field(None, description="Price of its tokens; orders pools by cost.")
    context: int = Field(32_768, gt=0, description="Context window in tokens, prompt and answer together.")
    tools: bool = Field(True, description="It can call tools.")
    images: bool = Field(False, description="It can read images.")
    apis: tuple[ApiName, ...] = Field(
        ("chat_completions", "completions", "responses", "messages"),
        min_length=1,
        description="The APIs it serves.",
    )
    reasoning: str = Field(
        "none", description="The model family whose reasoning switch is written; see docs/configuration.md."
    )
    metrics: str | None = Field(
        None, pattern=r"^https?://", description="URL of its vLLM metrics; its load is exported with ours."
    )
    gauges: dict[Gauge, GaugeNames] = Field(
        {}, description="Gauge to its names on that page, the first found counts; default: vLLM's."
    )


class VirtualModel(Model):
    """A model name that clients may ask for and that is routed."""

    policy: str = Field(description="Name of the policy that decides.")
    quality: float | None = Field(
        None, ge=0, le=1, description="Trade-off from 0 (cheapest) to 1 (best) where the client sends none."
    )
    canary: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        {},
        max_length=POLICIES_MAX,
        description="Policy to its share of the requests, drawn by request id; the rest is `policy`'s.",
    )

    @model_validator(mode="after")
    def _shares(self) -> VirtualModel:
        if sum(self.canary.values()) > 1.0 + 1e-9:
            raise ValueError("the shares of canary are more than 1 together")
        return self


def cost(pool: Pool, input_tokens: float, output_tokens: float) -> float:
    """Dollars for a request; 0 where the pool has no price."""
    if pool.price is None:
        return 0.0
    return (pool.price.input * input_tokens + pool.price.output * output_tokens) / 1e6

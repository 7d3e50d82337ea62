"""Pools, and the model names that are routed to them.

Pure.
"""

from __future__ import annotations

from pydantic import Field

from semroute_extproc.config.base import Model, Name
from semroute_extproc.request import Api


class Price(Model):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output: float = Field(ge=0, description="Dollars per million completion tokens.")


class Pool(Model):
    """An Envoy cluster and the model it serves."""

    cluster: Name = Field(description="Name of the Envoy cluster; the only clusters ever chosen.")
    model: Name = Field(description="The model's name at that cluster, written into the body.")
    price: Price | None = Field(None, description="What its tokens cost; orders pools from cheap to dear.")
    context: int = Field(32_768, gt=0, description="Context window in tokens, prompt and answer together.")
    tools: bool = Field(True, description="It can call tools.")
    images: bool = Field(False, description="It can read images.")
    apis: tuple[Api, ...] = Field(
        (Api.CHAT_COMPLETIONS, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES),
        min_length=1,
        description="The APIs it serves.",
    )
    reasoning: str = Field(
        "none", description="The model family whose reasoning switch is written; see docs/configuration.md."
    )
    metrics: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL of its vLLM metrics; the load it reports is exported with ours.",
    )


class VirtualModel(Model):
    """A model name that clients may ask for and that is routed."""

    policy: str = Field(description="Name of the policy that decides.")
    quality: float | None = Field(
        None, ge=0, le=1, description="Trade-off from 0 (cheapest) to 1 (best) where the client sends none."
    )

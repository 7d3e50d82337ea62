"""Pools, and the model names that are routed to them. Pure."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from semroute_extproc.settings.base import (
    POLICIES_MAX,
    Effort,
    Family,
    FilePath,
    Model,
    Name,
    PolicyName,
    Share,
    Url,
    several,
)

_TextApi = Literal["chat_completions", "completions", "responses", "messages", "embeddings"]
_OtherApi = Literal[
    "rerank", "score", "pooling", "classify", "transcriptions", "translations", "speech", "images"
]
ApiName = Literal[_TextApi, _OtherApi]  # the values of `request.view.Api` that only some models serve

Alias = Annotated[str, Field(pattern=r"^[!-)+-~]*(\*[!-)+-~]*){0,2}$", min_length=1, max_length=128)]
"""A name in ASCII without spaces, or a pattern with one or two `*`."""

Aliases = Annotated[tuple[Alias, ...], BeforeValidator(several), Field(max_length=64)]

ServerUrl = Annotated[
    str, Field(pattern=r"^http://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?$", max_length=300)
]
"""The address of a vLLM server, as in `http://host:8000`."""


def _at_most_one(shares: dict[str, float]) -> dict[str, float]:
    if sum(shares.values()) > 1.0 + 1e-9:
        raise ValueError("the canary shares add up to more than 1")
    return shares


Shares = Annotated[
    dict[PolicyName, Annotated[float, Field(gt=0, le=1)]],
    Field(max_length=POLICIES_MAX),
    AfterValidator(_at_most_one),
]
"""Policies and their shares of the requests."""

Gauge = Literal["running", "waiting", "kv_cache_usage"]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]{0,199}$")]
GaugeNames = Annotated[tuple[MetricName, ...], BeforeValidator(several), Field(min_length=1, max_length=8)]


class Price(Model):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output: float = Field(ge=0, description="Dollars per million completion tokens.")
    cached: float | None = Field(
        None, ge=0, description="Dollars per million prompt tokens from the prefix cache; default: `input`."
    )


class Pool(Model):
    """An Envoy cluster and the model that it serves."""

    cluster: Name = Field(
        "",
        description="Name of the Envoy cluster; only these clusters are ever selected. A pool with "
        "`endpoints` needs none: the default is the pool's name.",
    )
    endpoints: tuple[ServerUrl, ...] = Field(
        (),
        max_length=256,
        description="Addresses of its servers, such as `http://host:8000`, for `semroute envoy`.",
    )
    model: Name = Field(description="Model name at that cluster; replaces the model name in the body.")
    price: Price | None = Field(None, description="Token prices; used to order pools by cost.")
    context: int = Field(32_768, gt=0, description="Context window in tokens, for prompt and answer.")
    clamp: bool = Field(False, description="Lower the answer's token limit to what the prompt leaves.")
    tokenizer: FilePath | None = Field(
        None, description="The model's tokenizer.json; counts the tokens of prompts near the context limit."
    )
    tools: bool = Field(True, description="The model can call tools.")
    images: bool = Field(False, description="The model can read images.")
    audio: bool = Field(False, description="The model can read audio.")
    video: bool = Field(False, description="The model can read video.")
    files: bool = Field(False, description="The model can read files, such as PDF documents.")
    foreign_history: bool = Field(True, description="Accepts tool calls of other models; Mistral does not.")
    apis: tuple[ApiName, ...] = Field(
        ("chat_completions", "completions", "responses", "messages"), min_length=1, description="APIs served."
    )
    aliases: Aliases = Field((), description="Other names of this model, with `*` for any text.")
    owned_by: str = Field("vllm", max_length=128, description="`owned_by` in the list of models.")
    policy: PolicyName | None = Field(None, description="Policy for requests that name this model.")
    canary: Shares = Field(
        {}, description="With `policy`: other policies and their shares of these requests."
    )
    reasoning: Family = Field("none", description="Reasoning family of the model; see docs/configuration.md.")
    metrics: Url | None = Field(None, pattern=r"^https?://", description="URL of the vLLM metrics to scrape.")
    gauges: dict[Gauge, GaugeNames] = Field(
        {}, description="Metric names of each gauge; the first one found is used. Default: vLLM's names."
    )


class ReasoningFamily(Model):
    """The reasoning switches of models that no built-in family describes."""

    argument: str = Field("", max_length=64, description="Argument of the chat template that is the switch.")
    on: bool | str | None = Field(None, description="Its value with reasoning; null: the effort enables it.")
    off: bool | str = Field(False, description="Its value without reasoning.")
    efforts: dict[Effort, Name] | None = Field(
        None, description="Efforts to rename, such as `{minimal: low}`; `{}`: rename none; null: no efforts."
    )
    budget: bool | None = Field(None, description="Accepts `thinking_token_budget`; null: leave it as sent.")


class VirtualModel(Model):
    """A model name that clients request and that is routed."""

    policy: PolicyName = Field(description="Name of the policy that decides.")
    aliases: Aliases = Field((), description="Other names of this model, with `*` for any text.")
    quality: Share | None = Field(None, description="Default quality, from 0 (cheapest) to 1 (best).")
    canary: Shares = Field({}, description="Other policies and their shares, selected at random.")

    @property
    def shares(self) -> dict[str, float]:
        """Every policy that may decide, and its share."""
        return {**self.canary, self.policy: max(1.0 - sum(self.canary.values()), 0.0)}


def cost(pool: Pool, input_tokens: float, output_tokens: float, cached_tokens: float = 0) -> float:
    """Dollars for a request, of whose input some tokens were cached; 0 if the pool has no price."""
    if (price := pool.price) is None:
        return 0.0
    cached = price.input if price.cached is None else price.cached
    of_input = price.input * (input_tokens - cached_tokens) + cached * cached_tokens
    return (of_input + price.output * output_tokens) / 1e6

"""The configuration: what the operator may say, and what is checked about it.

Pure. Reading YAML, the environment and positions in the file is `config_source`; this module
knows only the shapes. Every model refuses unknown keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from semroute_extproc.request import Api

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,127}$")]
"""A name that is safe as a header value and as a metric label."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Reasoning efforts, as vLLM names them."""

POOLS_MAX = 64
RULES_MAX = 128
MODELS_MAX = 256
"""Bounds of the configuration, and with them of every metric's label set."""

PORT_MAX = 65_535
"""Largest TCP port."""


def _effort(value: Any) -> Any:
    """`off` and `on` are what people write; YAML 1.1 habits make them booleans."""
    if isinstance(value, bool):
        return "medium" if value else "none"
    return {"off": "none", "on": "medium"}.get(value, value) if isinstance(value, str) else value


EffortSetting = Annotated[Effort, BeforeValidator(_effort)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Price(_Model):
    """Dollars per million tokens."""

    input: float = Field(ge=0, description="Dollars per million prompt tokens.")
    output: float = Field(ge=0, description="Dollars per million completion tokens.")


class Pool(_Model):
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


class Target(_Model):
    """Where a request goes: to a pool, or to what a strategy picks."""

    pool: str | None = Field(None, description="Name of a pool.")
    strategy: str | None = Field(None, description="Name of a strategy.")
    reasoning: EffortSetting | None = Field(
        None, description="Reasoning effort to ask for, unless the client set one; `off` for none."
    )

    @model_validator(mode="after")
    def _one_target(self) -> Target:
        if (self.pool is None) == (self.strategy is None):
            raise ValueError("give exactly one of pool and strategy")
        return self


class Rule(Target):
    """A target with a condition."""

    name: Name = Field(description="Shown in the decision's reason and in metrics.")
    when: str = Field(max_length=4_096, description="A CEL expression over the request and its signals.")


class Policy(_Model):
    """Rules, first match wins, and where everything else goes."""

    rules: tuple[Rule, ...] = Field((), max_length=RULES_MAX)
    otherwise: Target


class ThresholdStrategy(_Model):
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


class IntentStrategy(_Model):
    """Experts by domain; the unsure go to a generalist (Samba-CoE v0.3)."""

    kind: Literal["intent"]
    by: Literal["domain", "task"] = Field("domain", description="Which head chooses the expert.")
    experts: dict[str, str] = Field(min_length=1, description="Label to pool.")
    otherwise: str = Field(description="Pool of the labels without an expert.")
    unsure: str = Field(description="Pool of texts that are unknown or whose entropy is too high.")
    max_entropy: float = Field(
        0.6, gt=0, le=1, description="Abstain above this entropy, as a share of its maximum."
    )


class FixedStrategy(_Model):
    """Always the same pool."""

    kind: Literal["fixed"]
    pool: str


class WeightedStrategy(_Model):
    """A canary: shares by weight, the same for the same request id."""

    kind: Literal["weighted"]
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="Pool to weight."
    )

    @model_validator(mode="after")
    def _positive(self) -> WeightedStrategy:
        if sum(self.weights.values()) <= 0:
            raise ValueError("at least one weight must be positive")
        return self


Strategy = Annotated[
    ThresholdStrategy | IntentStrategy | FixedStrategy | WeightedStrategy, Field(discriminator="kind")
]


class VirtualModel(_Model):
    """A model name that clients may ask for and that is routed."""

    policy: str = Field(description="Name of the policy that decides.")
    quality: float | None = Field(
        None, ge=0, le=1, description="Trade-off from 0 (cheapest) to 1 (best) where the client sends none."
    )


class Server(_Model):
    """The gRPC side. A change needs a restart."""

    listen: str = Field(
        "unix:/run/semroute/w0.sock",
        pattern=r"^(unix:.+|unix-abstract:.+|.+:[0-9]{1,5})$",
        description="`unix:/path` or `host:port` for Envoy's gRPC stream.",
    )
    deadline_ms: float = Field(
        100, gt=0, le=10_000, description="Time for one decision, queue and encoder included."
    )
    body_bytes_max: int = Field(
        32 * 1024 * 1024, ge=1_024, le=1024 * 1024 * 1024, description="Bodies above get 413."
    )
    streams_max: int = Field(4_096, ge=1, le=1_048_576, description="Requests in flight at once.")
    drain_seconds: float = Field(
        5, ge=0, le=600, description="After SIGTERM: how long to report NOT_SERVING and still serve."
    )
    allow_mode_override: bool = Field(
        True, description="Envoy's filter has allow_mode_override, so a body may be asked for."
    )


class Encoder(_Model):
    """The bundle and where it runs. A change needs a restart."""

    bundle: str | None = Field(None, description="Directory of a bundle; default: the shipped one.")
    by_language: dict[Annotated[str, StringConstraints(pattern="^[a-z]{2}$")], str] | None = Field(
        None,
        max_length=8,
        description="Language (ISO 639-1) to the bundle that reads it; default: the shipped ones.",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="`cuda` refuses to start without a GPU.")
    lanes: int | None = Field(
        None, ge=1, le=256, description="Passes at once; default: one a core, one a GPU."
    )
    queue_max: int = Field(256, ge=1, le=65_536, description="Texts that may wait; more fall back at once.")


class Admin(_Model):
    """The HTTP side. A change needs a restart."""

    listen: str | None = Field(
        "127.0.0.1:9090",
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[^:\s]*):[0-9]{1,5}$",
        description="`host:port` of health, metrics and config; null for none.",
    )

    @model_validator(mode="after")
    def _port(self) -> Admin:
        if self.listen is not None and int(self.listen.rpartition(":")[2]) > PORT_MAX:
            raise ValueError(f"the port is above {PORT_MAX}")
        return self


class Telemetry(_Model):
    """Logs and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: console on a terminal, JSON otherwise."
    )
    log_decisions: bool = Field(True, description="One line a decision.")
    log_prompts: bool = Field(False, description="Add the classified text to that line.")
    otlp_endpoint: str | None = Field(
        None, description="OTLP/gRPC collector for spans; OTEL_EXPORTER_OTLP_ENDPOINT also sets it."
    )


class Config(_Model):
    """The whole configuration."""

    server: Server = Field(default_factory=Server)
    encoder: Encoder = Field(default_factory=Encoder)
    admin: Admin = Field(default_factory=Admin)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    pools: dict[Name, Pool] = Field(min_length=1, max_length=POOLS_MAX)
    default_pool: str = Field(description="Pool of everything that is not routed, and of every fallback.")
    models: dict[Name, VirtualModel] = Field(
        default_factory=dict, max_length=MODELS_MAX, description="Model names that are routed."
    )
    policies: dict[Name, Policy] = Field(default_factory=dict)
    strategies: dict[Name, Strategy] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place of the configuration."""

    path: tuple[str | int, ...]
    message: str


def unresolved(config: Config, families: Collection[str]) -> Iterator[Problem]:
    """Names that are used and not defined: pools, strategies, policies, reasoning families."""
    pools, strategies = config.pools, config.strategies
    yield from _known(("default_pool",), config.default_pool, pools, "pool")
    for name, pool in pools.items():
        yield from _known(("pools", name, "reasoning"), pool.reasoning, families, "reasoning family")
    for name, virtual in config.models.items():
        yield from _known(("models", name, "policy"), virtual.policy, config.policies, "policy")
        if any(name == pool.model for pool in pools.values()):
            yield Problem(("models", name), "is also the name of a pool's model: clients could not reach it")
    for name, policy in config.policies.items():
        targets: list[tuple[tuple[str | int, ...], Target]] = [
            (("policies", name, "rules", index), rule) for index, rule in enumerate(policy.rules)
        ]
        for path, target in [*targets, (("policies", name, "otherwise"), policy.otherwise)]:
            if target.pool is not None:
                yield from _known((*path, "pool"), target.pool, pools, "pool")
            if target.strategy is not None:
                yield from _known((*path, "strategy"), target.strategy, strategies, "strategy")
    for name, strategy in strategies.items():
        for field, pool_name in _pools_of(strategy):
            yield from _known(("strategies", name, *field), pool_name, pools, "pool")


def _pools_of(strategy: Strategy) -> Iterator[tuple[tuple[str, ...], str]]:
    match strategy:
        case ThresholdStrategy():
            yield ("weak",), strategy.weak
            yield ("strong",), strategy.strong
            if strategy.unsure is not None:
                yield ("unsure",), strategy.unsure
        case IntentStrategy():
            yield from ((("experts", label), pool) for label, pool in strategy.experts.items())
            yield ("otherwise",), strategy.otherwise
            yield ("unsure",), strategy.unsure
        case FixedStrategy():
            yield ("pool",), strategy.pool
        case WeightedStrategy():
            yield from ((("weights", pool), pool) for pool in strategy.weights)


def _known(path: tuple[str | int, ...], name: str, known: Collection[str], what: str) -> Iterator[Problem]:
    if name not in known:
        yield Problem(path, f"there is no {what} {name!r}" + did_you_mean(name, known))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error about an unknown name, empty if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""

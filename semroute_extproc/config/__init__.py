"""The configuration: what the operator may say, and what is checked about it.

Pure. Reading YAML, the environment and positions in the file is `config_source`; this module
knows only the shapes. Every model refuses unknown keys.

    base         names, efforts, bounds
    process      server, encoder, admin, telemetry
    pools        pools and the model names routed to them
    policies     rules and targets
    strategies   one model of settings each
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from pydantic import Field

from semroute_extproc.config.base import MODELS_MAX, POOLS_MAX, Effort, Model, Name
from semroute_extproc.config.policies import Policy, Rule, Target
from semroute_extproc.config.pools import Pool, Price, VirtualModel
from semroute_extproc.config.process import Admin, Encoder, Server, Telemetry
from semroute_extproc.config.strategies import (
    ClustersStrategy,
    FactorizationStrategy,
    FixedStrategy,
    IntentStrategy,
    JudgeStrategy,
    PairStrategy,
    SimilarityStrategy,
    Strategy,
    ThresholdStrategy,
    WeightedStrategy,
)

__all__ = [
    "Admin",
    "ClustersStrategy",
    "Config",
    "Effort",
    "Encoder",
    "FactorizationStrategy",
    "FixedStrategy",
    "IntentStrategy",
    "JudgeStrategy",
    "Model",
    "Name",
    "PairStrategy",
    "Policy",
    "Pool",
    "Price",
    "Problem",
    "Rule",
    "Server",
    "SimilarityStrategy",
    "Strategy",
    "Target",
    "Telemetry",
    "ThresholdStrategy",
    "VirtualModel",
    "WeightedStrategy",
    "did_you_mean",
    "unresolved",
]


class Config(Model):
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
        if isinstance(strategy, JudgeStrategy):
            yield from _judge_problems(config, name, strategy, families)
        for field, pool_name in _pools_of(strategy):
            yield from _known(("strategies", name, *field), pool_name, pools, "pool")


def _judge_problems(
    config: Config, name: str, judge: JudgeStrategy, families: Collection[str]
) -> Iterator[Problem]:
    yield from _known(("strategies", name, "reasoning"), judge.reasoning, families, "reasoning family")
    if judge.model in config.models:
        yield Problem(
            ("strategies", name, "model"),
            "is a routed name: a judge is asked at its own server, not through us",
        )
    if judge.timeout_ms >= config.server.deadline_ms:
        yield Problem(
            ("strategies", name, "timeout_ms"),
            f"is not below server.deadline_ms ({config.server.deadline_ms:g}), by which every decision ends",
        )


def _pools_of(strategy: Strategy) -> Iterator[tuple[tuple[str, ...], str]]:
    match strategy:
        case PairStrategy():
            yield ("weak",), strategy.weak
            yield ("strong",), strategy.strong
            if strategy.unsure is not None:
                yield ("unsure",), strategy.unsure
        case ClustersStrategy():
            yield from ((("pools", pool), pool) for pool in strategy.pools or ())
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

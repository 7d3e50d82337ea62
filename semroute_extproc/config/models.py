"""The configuration: what the operator may say, and what is checked about it.

Pure. Reading YAML, the environment and positions in the file is `config_source`; this module
knows only the shapes. Every model refuses unknown keys.

    base         names, efforts, bounds
    process      server, encoder, admin, telemetry
    pools        pools and the model names routed to them
    policies     rules and targets
    strategies   one model of settings each
    controllers  what moves the trade-off while requests come
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pydantic import Field

from semroute_extproc.settings.base import (
    MODELS_MAX,
    POLICIES_MAX,
    POOLS_MAX,
    STRATEGIES_MAX,
    Effort,
    Model,
    Name,
    Problem,
    did_you_mean,
    pair_of,
)
from semroute_extproc.settings.controllers import (
    Budget,
    Controllers,
    LoadController,
    Ramp,
    RemoteSessions,
    SessionController,
)
from semroute_extproc.settings.policies import Band, Policy, Reasoning, Rule, Target
from semroute_extproc.settings.pools import Pool, Price, VirtualModel
from semroute_extproc.settings.process import Admin, Encoder, Server, Telemetry
from semroute_extproc.settings.strategies import (
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
    "Band",
    "Budget",
    "ClustersStrategy",
    "Config",
    "Controllers",
    "Effort",
    "Encoder",
    "FactorizationStrategy",
    "FixedStrategy",
    "IntentStrategy",
    "JudgeStrategy",
    "LoadController",
    "Model",
    "Name",
    "PairStrategy",
    "Policy",
    "Pool",
    "Price",
    "Problem",
    "Ramp",
    "Reasoning",
    "RemoteSessions",
    "Rule",
    "Server",
    "SessionController",
    "SimilarityStrategy",
    "Strategy",
    "Target",
    "Telemetry",
    "ThresholdStrategy",
    "VirtualModel",
    "WeightedStrategy",
    "did_you_mean",
    "doubts",
    "leans",
    "pair_of",
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
    policies: dict[Name, Policy] = Field(default_factory=dict, max_length=POLICIES_MAX)
    strategies: dict[Name, Strategy] = Field(default_factory=dict, max_length=STRATEGIES_MAX)
    controllers: Controllers = Field(default_factory=Controllers)


def unresolved(config: Config, families: Collection[str]) -> Iterator[Problem]:
    """Names that are used and not defined: pools, strategies, policies, reasoning families."""
    pools, strategies = config.pools, config.strategies
    yield from _known(("default_pool",), config.default_pool, pools, "pool")
    for name, pool in pools.items():
        yield from _known(("pools", name, "reasoning"), pool.reasoning, families, "reasoning family")
    for name, virtual in config.models.items():
        yield from _known(("models", name, "policy"), virtual.policy, config.policies, "policy")
        for drawn in virtual.canary:
            yield from _known(("models", name, "canary", drawn), drawn, config.policies, "policy")
            if drawn == virtual.policy:
                yield Problem(("models", name, "canary", drawn), "is the policy that the rest goes to")
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
        for index, shadow in enumerate(policy.shadow):
            yield from _known(("policies", name, "shadow", index), shadow, config.policies, "policy")
            if shadow == name:
                yield Problem(("policies", name, "shadow", index), "is the policy itself")
    for name, strategy in strategies.items():
        if isinstance(strategy, JudgeStrategy):
            yield from _judge_problems(config, name, strategy, families)
        for field, pool_name in _pools_of(strategy):
            yield from _known(("strategies", name, *field), pool_name, pools, "pool")
        if isinstance(strategy, WeightedStrategy):
            yield from _drawn_strategies(name, strategy, strategies)
    yield from _controllers(config)


def _drawn_strategies(
    name: str, strategy: WeightedStrategy, strategies: Mapping[str, Strategy]
) -> Iterator[Problem]:
    for drawn in strategy.strategies or ():
        path = ("strategies", name, "strategies", drawn)
        yield from _known(path, drawn, strategies, "strategy")
        other = strategies.get(drawn)
        if isinstance(other, WeightedStrategy) and other.strategies is not None:
            yield Problem(path, "draws among strategies itself")


def leans(strategy: Strategy) -> bool:
    """Whether a budget can move what a strategy chooses: it weighs cost against quality."""
    return pair_of(strategy) is not None or strategy.kind in ("clusters",)


def _controllers(config: Config) -> Iterator[Problem]:
    """What the controllers name, and what they need to be of any use."""
    settings, pools = config.controllers, config.pools
    for name, budget in settings.budgets.items():
        path = ("controllers", "budgets", name)
        yield from _known(path, name, config.strategies, "strategy")
        pair = pair_of(config.strategies.get(name))
        if name in config.strategies and pair is None and budget.strong_share is not None:
            yield Problem(path, "this strategy has no weak and strong pool, so there is no share to hold")
        elif name in config.strategies and not leans(config.strategies[name]):
            yield Problem(path, "this strategy weighs no cost, so a budget could not move it")
        if budget.dollars_per_thousand is not None and pair is not None:
            yield from _dollars(config, (*path, "dollars_per_thousand"), *pair)
    if settings.load is not None:
        for pool in settings.load.pools:
            yield from _known(("controllers", "load", "pools", pool), pool, pools, "pool")
        if not any(pool.metrics for pool in pools.values()):
            yield Problem(("controllers", "load"), "no pool has metrics, so no load would ever be known")
    if settings.session is not None:
        for index, strategy in enumerate(settings.session.strategies or ()):
            where = ("controllers", "session", "strategies", index)
            yield from _known(where, strategy, config.strategies, "strategy")


def _dollars(config: Config, path: tuple[str | int, ...], weak: str, strong: str) -> Iterator[Problem]:
    """What keeps a budget in dollars from ever moving a pair."""
    prices = {pool: config.pools[pool].price for pool in (weak, strong) if pool in config.pools}
    for pool, price in prices.items():
        if price is None:
            yield Problem(path, f"pool {pool} has no price")
    if _dearer(config, weak, strong):
        yield Problem(path, f"the weak pool {weak} is not cheaper than {strong}, so no share would save any")


def _dearer(config: Config, weak: str, strong: str) -> bool:
    """By their prices the weak pool is not cheaper than the strong one."""
    low, high = (config.pools[name].price if name in config.pools else None for name in (weak, strong))
    return low is not None and high is not None and low.input >= high.input and low.output >= high.output


def doubts(config: Config) -> Iterator[Problem]:
    """What may be meant and is more likely a slip."""
    for name, strategy in config.strategies.items():
        pair = pair_of(strategy)
        if pair is not None and _dearer(config, *pair) and not _dearer(config, *reversed(pair)):
            message = f"by their prices {pair[0]} is dearer than {pair[1]}: are weak and strong swapped?"
            yield Problem(("strategies", name, "weak"), message)


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
            yield from ((("weights", pool), pool) for pool in strategy.weights or ())


def _known(path: tuple[str | int, ...], name: str, known: Collection[str], what: str) -> Iterator[Problem]:
    if name not in known:
        yield Problem(path, f"there is no {what} {name!r}" + did_you_mean(name, known))

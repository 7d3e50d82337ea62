"""The root of the configuration, and the checks between its sections.

`config.source` reads YAML, the environment and positions in the file; the sections are in `settings`, the
settings of the strategies in `strategies`. Every model rejects unknown keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import Field

from semroute_extproc.settings import base
from semroute_extproc.settings.base import Model, Name, Problem, did_you_mean, pair_of
from semroute_extproc.settings.controllers import Controllers
from semroute_extproc.settings.policies import Policy
from semroute_extproc.settings.pools import Pool, VirtualModel
from semroute_extproc.settings.process import Admin, Encoder, Server, Telemetry
from semroute_extproc.strategies.registry import StrategySetting

Place = tuple[str | int, ...]


class Config(Model):
    """The whole configuration."""

    server: Server = Field(default_factory=Server)
    encoder: Encoder = Field(default_factory=Encoder)
    admin: Admin = Field(default_factory=Admin)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    pools: dict[Name, Pool] = Field(min_length=1, max_length=base.POOLS_MAX)
    default_pool: str = Field(description="Pool of requests that are not routed, and of every fallback.")
    models: dict[Name, VirtualModel] = Field(
        default_factory=dict, max_length=base.MODELS_MAX, description="Model names that are routed."
    )
    policies: dict[Name, Policy] = Field(default_factory=dict, max_length=base.POLICIES_MAX)
    strategies: dict[Name, StrategySetting] = Field(default_factory=dict, max_length=base.STRATEGIES_MAX)
    controllers: Controllers = Field(default_factory=Controllers)


def unresolved(config: Config, families: Collection[str]) -> Iterator[Problem]:
    """Names that are used and not defined, and settings that contradict each other across sections."""
    known: dict[str, Collection[str]] = {"reasoning family": families, "pool": config.pools}
    known |= {"policy": config.policies, "strategy": config.strategies}
    for path, name, kind in _references(config):
        if name not in known[kind]:
            yield Problem(path, f"there is no {kind} {name!r}" + did_you_mean(name, known[kind]))
    for name, virtual in config.models.items():
        if virtual.policy in virtual.canary:
            yield Problem(("models", name, "canary", virtual.policy), "is the policy that the rest goes to")
        if any(name == pool.model for pool in config.pools.values()):
            yield Problem(("models", name), "is also the name of a pool's model: clients could not reach it")
    for name, policy in config.policies.items():
        for index, shadow in enumerate(policy.shadow):
            if shadow == name:
                yield Problem(("policies", name, "shadow", index), "is the policy itself")
    for name, strategy in config.strategies.items():
        for setting, message in strategy.check(config.models, config.server.deadline_ms, families):
            yield Problem(("strategies", name, setting), message)
    yield from _controllers(config)


def _references(config: Config) -> Iterator[tuple[Place, str, str]]:
    """Every use of a name: where, the name, and its kind."""
    yield ("default_pool",), config.default_pool, "pool"
    for name, pool in config.pools.items():
        yield ("pools", name, "reasoning"), pool.reasoning, "reasoning family"
    for name, virtual in config.models.items():
        yield ("models", name, "policy"), virtual.policy, "policy"
        yield from ((("models", name, "canary", drawn), drawn, "policy") for drawn in virtual.canary)
    for name, policy in config.policies.items():
        for path, target in policy.targets():
            for kind, used in (("pool", target.pool), ("strategy", target.strategy)):
                if used is not None:
                    yield ("policies", name, *path, kind), used, kind
        for index, shadow in enumerate(policy.shadow):
            yield ("policies", name, "shadow", index), shadow, "policy"
    for name, strategy in config.strategies.items():
        yield from ((("strategies", name, *path), used, "pool") for path, used in strategy.named_pools())
    load, budgets, session = config.controllers.load, config.controllers.budgets, config.controllers.session
    yield from ((("controllers", "budgets", name), name, "strategy") for name in budgets)
    if load is not None:
        yield from ((("controllers", "load", "pools", name), name, "pool") for name in load.pools)
    for index, name in enumerate(session.strategies or () if session else ()):
        yield ("controllers", "session", "strategies", index), name, "strategy"


def _controllers(config: Config) -> Iterator[Problem]:
    """Settings with which a controller could never have an effect."""
    for name, budget in config.controllers.budgets.items():
        if (strategy := config.strategies.get(name)) is None:
            continue
        path: Place = ("controllers", "budgets", name)
        pair = pair_of(strategy)
        if pair is None and budget.strong_share is not None:
            yield Problem(path, "this strategy has no weak and strong pool, so there is no share to hold")
        elif not strategy.weighs_cost:
            yield Problem(path, "this strategy weighs no cost, so a budget could not move it")
        if budget.dollars_per_thousand is None or pair is None:
            continue
        path = (*path, "dollars_per_thousand")
        for pool in pair:
            if pool in config.pools and config.pools[pool].price is None:
                yield Problem(path, f"pool {pool} has no price")
        if _costs_as_much(config, *pair):
            message = f"the weak pool {pair[0]} is not cheaper than {pair[1]}, so no share would save any"
            yield Problem(path, message)
    if config.controllers.load is not None and not any(pool.metrics for pool in config.pools.values()):
        yield Problem(("controllers", "load"), "no pool has metrics, so no load would ever be known")


def _costs_as_much(config: Config, weak: str, strong: str) -> bool:
    """By their prices the weak pool is not cheaper than the strong one."""
    low, high = (config.pools[name].price if name in config.pools else None for name in (weak, strong))
    return low is not None and high is not None and low.input >= high.input and low.output >= high.output


def warnings(config: Config) -> Iterator[Problem]:
    """Settings that are allowed and are likely mistakes."""
    for name, strategy in config.strategies.items():
        weak, strong = pair_of(strategy) or ("", "")
        if _costs_as_much(config, weak, strong) and not _costs_as_much(config, strong, weak):
            message = f"by their prices {weak} is more expensive than {strong}: are weak and strong swapped?"
            yield Problem(("strategies", name, "weak"), message)

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
from semroute_extproc.settings.names import ambiguous
from semroute_extproc.settings.policies import Policy
from semroute_extproc.settings.pools import Pool, ReasoningFamily, VirtualModel
from semroute_extproc.settings.process import Admin, Encoder, Server, Telemetry
from semroute_extproc.settings.text import Text
from semroute_extproc.strategies.registry import StrategySetting


class Config(Model):
    """The whole configuration."""

    server: Server = Field(default_factory=Server)
    encoder: Encoder = Field(default_factory=Encoder)
    admin: Admin = Field(default_factory=Admin)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    text: Text = Field(default_factory=Text)
    pools: dict[Name, Pool] = Field(min_length=1, max_length=base.POOLS_MAX)
    default_pool: str = Field(description="Pool of requests that are not routed, and of every fallback.")
    models: dict[Name, VirtualModel] = Field(
        default_factory=dict, max_length=base.MODELS_MAX, description="Model names that are routed."
    )
    policies: dict[Name, Policy] = Field(default_factory=dict, max_length=base.POLICIES_MAX)
    strategies: dict[Name, StrategySetting] = Field(default_factory=dict, max_length=base.STRATEGIES_MAX)
    reasoning_families: dict[Name, ReasoningFamily] = Field(
        default_factory=dict, max_length=base.POOLS_MAX, description="Reasoning switches of your own models."
    )
    controllers: Controllers = Field(default_factory=Controllers)


def unresolved(config: Config, families: Collection[str]) -> Iterator[Problem]:
    """Undefined names, and settings of different sections that contradict each other."""
    known: dict[str, Collection[str]] = {"pool": config.pools}
    known["reasoning family"] = {**dict.fromkeys(families), **config.reasoning_families}
    known |= {"policy": config.policies, "strategy": config.strategies}

    def unknown(kind: str, name: str | None, *path: str | int) -> Iterator[Problem]:
        if name is not None and name not in known[kind]:
            yield Problem(path, f"there is no {kind} {name!r}" + did_you_mean(name, known[kind]))

    yield from unknown("pool", config.default_pool, "default_pool")
    for name, pool in config.pools.items():
        yield from unknown("reasoning family", pool.reasoning, "pools", name, "reasoning")
        yield from unknown("policy", pool.policy, "pools", name, "policy")
    yield from ambiguous(config.models, config.pools)
    for name, virtual in config.models.items():
        yield from unknown("policy", virtual.policy, "models", name, "policy")
        for drawn in virtual.canary:
            yield from unknown("policy", drawn, "models", name, "canary", drawn)
        if virtual.policy in virtual.canary:
            yield Problem(("models", name, "canary", virtual.policy), "is already the model's main policy")
        if any(name == pool.model for pool in config.pools.values()):
            yield Problem(("models", name), "is also a pool's model: clients could not request that model")
    for name, policy in config.policies.items():
        for path, target in policy.targets():
            yield from unknown("pool", target.pool, "policies", name, *path, "pool")
            yield from unknown("strategy", target.strategy, "policies", name, *path, "strategy")
        for index, shadow in enumerate(policy.shadow):
            yield from unknown("policy", shadow, "policies", name, "shadow", index)
            if shadow == name:
                yield Problem(("policies", name, "shadow", index), "is the policy itself")
    for name, strategy in config.strategies.items():
        for place, used in strategy.named_pools():
            yield from unknown("pool", used, "strategies", name, *place)
        for setting, message in strategy.check(config.models, config.server.deadline_ms, families):
            yield Problem(("strategies", name, setting), message)
    load, budgets, session = config.controllers.load, config.controllers.budgets, config.controllers.session
    for name in budgets:
        yield from unknown("strategy", name, "controllers", "budgets", name)
        yield from _budget(config, name)
    for index, name in enumerate(session.strategies or () if session else ()):
        yield from unknown("strategy", name, "controllers", "session", "strategies", index)
    if load is not None:
        for name in load.pools:
            yield from unknown("pool", name, "controllers", "load", "pools", name)
        if not any(pool.metrics for pool in config.pools.values()):
            yield Problem(("controllers", "load"), "no pool has metrics, so the load is never known")


def _budget(config: Config, name: str) -> Iterator[Problem]:
    """Settings that keep the budget of a strategy from ever having an effect."""
    if (strategy := config.strategies.get(name)) is None:
        return
    budget, pair = config.controllers.budgets[name], pair_of(strategy)
    path = ("controllers", "budgets", name)
    if pair is None and budget.strong_share is not None:
        yield Problem(path, "this strategy has no weak and strong pool, so it has no strong share to control")
    elif not strategy.weighs_cost:
        yield Problem(path, "this strategy ignores cost, so a budget has no effect on it")
    if budget.dollars_per_thousand is None or pair is None:
        return
    for pool in pair:
        if pool in config.pools and config.pools[pool].price is None:
            yield Problem((*path, "dollars_per_thousand"), f"pool {pool} has no price")
    if _costs_as_much(config, *pair):
        message = f"the weak pool {pair[0]} is not cheaper than {pair[1]}, so no share saves money"
        yield Problem((*path, "dollars_per_thousand"), message)


def _costs_as_much(config: Config, weak: str, strong: str) -> bool:
    """Whether both pools have a price and the weak one is not cheaper."""
    low, high = (config.pools[name].price if name in config.pools else None for name in (weak, strong))
    return low is not None and high is not None and low.input >= high.input and low.output >= high.output


def warnings(config: Config) -> Iterator[Problem]:
    """Valid settings that are likely mistakes."""
    for name, strategy in config.strategies.items():
        weak, strong = pair_of(strategy) or ("", "")
        if _costs_as_much(config, weak, strong) and not _costs_as_much(config, strong, weak):
            message = f"by their prices {weak} is more expensive than {strong}: are weak and strong swapped?"
            yield Problem(("strategies", name, "weak"), message)

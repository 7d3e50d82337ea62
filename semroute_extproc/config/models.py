"""The root of the configuration, and the checks between its sections.

`config.source` reads YAML, the environment and positions in the file; the sections are in `settings`, the
settings of the strategies in `strategies`. Every model rejects unknown keys.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from semroute_extproc.request.reasoning import FAMILIES
from semroute_extproc.settings import base
from semroute_extproc.settings.base import Model, Name, PoolName, Problem, pair_of
from semroute_extproc.settings.controllers import Controllers
from semroute_extproc.settings.names import ambiguous
from semroute_extproc.settings.policies import Policy
from semroute_extproc.settings.pools import Pool, ReasoningFamily, VirtualModel
from semroute_extproc.settings.process import AccountingSetting, Admin, Encoder, Server, Telemetry
from semroute_extproc.settings.text import Text
from semroute_extproc.strategies.registry import StrategySetting


class Config(Model):
    """The whole configuration."""

    server: Server = Field(default_factory=Server)
    encoder: Encoder = Field(default_factory=Encoder)
    admin: Admin = Field(default_factory=Admin)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    accounting: AccountingSetting = Field(
        None, description="Count tokens and dollars of answers: `true`, `false` or settings."
    )
    text: Text = Field(default_factory=Text)
    pools: dict[Name, Pool] = Field(min_length=1, max_length=base.POOLS_MAX)
    default_pool: PoolName = Field(description="Pool of requests that are not routed, and of every fallback.")
    unreadable: Literal["pass", "refuse"] = Field(
        "pass",
        description="Bodies that cannot be read: `pass` applies rules that need none; `refuse`: HTTP 400.",
    )
    models: dict[Name, VirtualModel] = Field(
        default_factory=dict, max_length=base.MODELS_MAX, description="Model names that are routed."
    )
    policies: dict[Name, Policy] = Field(default_factory=dict, max_length=base.POLICIES_MAX)
    strategies: dict[Name, StrategySetting] = Field(default_factory=dict, max_length=base.STRATEGIES_MAX)
    reasoning_families: dict[Name, ReasoningFamily] = Field(
        default_factory=dict, max_length=base.POOLS_MAX, description="Reasoning switches of your own models."
    )
    controllers: Controllers = Field(default_factory=Controllers)

    @model_validator(mode="before")
    @classmethod
    def _clusters(cls, document: Any) -> Any:
        """The cluster of a pool with `endpoints` has the pool's name by default."""
        pools = document.get("pools") if isinstance(document, dict) else None
        if not isinstance(pools, dict):
            return document
        named = {
            name: {"cluster": name, **pool} if isinstance(pool, dict) and "endpoints" in pool else pool
            for name, pool in pools.items()
        }
        return {**document, "pools": named}


def names_in(document: Mapping[str, Any]) -> dict[str, Collection[str]]:
    """Kind to the names that settings may refer to, for the validation context of a document."""
    sections = {"pool": "pools", "policy": "policies", "strategy": "strategies"}
    sections["reasoning family"] = "reasoning_families"
    found = {kind: document.get(section, {}) for kind, section in sections.items()}
    names = {kind: [*map(str, section)] for kind, section in found.items() if isinstance(section, dict)}
    return {**names, "reasoning family": [*FAMILIES, *names.get("reasoning family", [])]}


def clusters(config: Config) -> dict[str, str]:
    """Every cluster that Envoy must have, and its pool; with failover there are two for each pool."""
    failover = config.controllers.failover
    suffixes = ("", failover.cluster_suffix) if failover else ("",)
    return {pool.cluster + end: name for name, pool in config.pools.items() for end in suffixes}


def contradictions(config: Config) -> Iterator[Problem]:
    """Settings of different sections that contradict each other."""
    yield from ambiguous(config.models, config.pools)
    for name, pool in config.pools.items():
        if pool.canary and not pool.policy:
            yield Problem(("pools", name, "canary"), "needs a policy, which the other requests get")
        if not pool.cluster:
            yield Problem(("pools", name, "cluster"), "is required for a pool without endpoints")
    for name, virtual in config.models.items():
        if virtual.policy in virtual.canary:
            yield Problem(("models", name, "canary", virtual.policy), "is already the model's main policy")
        if any(name == pool.model for pool in config.pools.values()):
            yield Problem(("models", name), "is also a pool's model: clients could not request that model")
    for name, policy in config.policies.items():
        for index, shadow in enumerate(policy.shadow):
            if shadow == name:
                yield Problem(("policies", name, "shadow", index), "is the policy itself")
    remote, limit = config.encoder.remote, config.server.deadline_ms
    if remote is not None and remote.deadline_ms >= limit:
        yield Problem(("encoder", "remote", "deadline_ms"), f"must be below server.deadline_ms, {limit:g}")
    for name, strategy in config.strategies.items():
        for setting, message in strategy.check(config.models, config.server.deadline_ms):
            yield Problem(("strategies", name, setting), message)
    for name in config.controllers.budgets:
        yield from _budget(config, name)
    unpriced = [name for name, pool in config.pools.items() if pool.price is None]
    if config.controllers.limits is not None and unpriced:
        yield Problem(("controllers", "limits"), f"pools without a price: {', '.join(unpriced)}")
    if config.controllers.load is not None and not any(pool.metrics for pool in config.pools.values()):
        yield Problem(("controllers", "load"), "no pool has metrics, so the load is never known")


def _budget(config: Config, name: str) -> Iterator[Problem]:
    """Settings that keep the budget of a strategy from ever having an effect."""
    strategy, budget = config.strategies[name], config.controllers.budgets[name]
    pair = pair_of(strategy)
    path = ("controllers", "budgets", name)
    if pair is None and budget.strong_share is not None:
        yield Problem(path, "this strategy has no weak and strong pool, so it has no strong share to control")
    elif not strategy.weighs_cost:
        yield Problem(path, "this strategy ignores cost, so a budget has no effect on it")
    if budget.dollars_per_thousand is None or pair is None:
        return
    low, high = prices = [config.pools[pool].price for pool in pair]
    for pool, price in zip(pair, prices, strict=True):
        if price is None:
            yield Problem((*path, "dollars_per_thousand"), f"pool {pool} has no price")
    if low and high and low.input >= high.input and low.output >= high.output:
        message = f"the weak pool {pair[0]} is not cheaper than {pair[1]}, so no share saves money"
        yield Problem((*path, "dollars_per_thousand"), message)

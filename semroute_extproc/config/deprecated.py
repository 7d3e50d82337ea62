"""Settings of the previous release, rewritten before validation; each use gives one note.

`rewrite` works on the plain document: the file with the environment's settings in it. It returns which
keys were replaced, so that an error about a rewritten setting shows what the operator wrote.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.base import Problem

RENAMED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("encoder", "lanes"), "threads"),
    (("strategies", "*", "unsure"), "on_unknown"),
    (("strategies", "*", "artefact"), "artifact"),
    (("controllers", "budgets", "*", "leaning_max"), "bias_max"),
)
"""Path of an old name, where `*` is any key, to the new name."""

Replaced = dict[tuple[str, ...], str]
"""Path that ends in a new key, and otherwise as the operator wrote it, to the key that was written."""


def rewrite(document: Any, locate: Callable[[Problem], str]) -> tuple[list[str], Replaced]:
    """Rewrite in place; returns the notes and the keys that were replaced.

    `locate` puts a problem's place before its message. Raises ConfigError where an old name and its new
    one are both given.
    """
    notes: list[str] = []
    replaced: Replaced = {}

    def note(message: str, *path: str) -> None:
        notes.append(locate(Problem(path, f"{message}; the next release will not read it")).splitlines()[0])

    for (*parents, old), new in RENAMED:
        for path, node in _matching(document, parents):
            if old not in node:
                continue
            if new in node:
                message = f"is the old name of {new}, which is given as well: remove it"
                raise ConfigError([locate(Problem((*path, old), message))])
            note(f"is now called {new}", *path, old)
            node[new] = node.pop(old)
            replaced[*path, new] = old
    strategies = _map(document, "strategies")
    for name, shares in [(name, _canary(each)) for name, each in strategies.items()]:
        if shares:
            write = f"one policy for each of {', '.join(shares)}, and shares in models.NAME.canary"
            note(f"is a canary of strategies: write {write}", "strategies", name)
            _split(document, name, shares, replaced)
    for name, strategy in list(strategies.items()):
        if isinstance(strategy, dict) and strategy.get("kind") == "fixed" and "pool" in strategy:
            pool = strategy["pool"]
            note(f"is `kind: fixed`: write `pool: {pool}` in the target", "strategies", name)
            _point(document, name, pool, replaced)
    return notes, replaced


def _split(document: Any, canary: str, shares: dict[str, float], replaced: Replaced) -> None:
    """A canary of strategies becomes a policy for each of them, and canary shares of the models."""
    first, *others = shares
    policies = _map(document, "policies")
    for policy, settings in list(policies.items()):
        if all(target.get("strategy") != canary for _, target in _targets(settings)):
            continue
        parts = {f"{policy}:{canary}:{drawn}": shares[drawn] for drawn in others}
        for name, drawn in zip((*parts, policy), (*others, first), strict=True):
            policies[name] = copy.deepcopy(settings)
            replaced["policies", name] = replaced.get(("policies", policy), policy)
            for _, target in _targets(policies[name]):
                if target.get("strategy") == canary:
                    target["strategy"] = drawn
        for model in _map(document, "models").values():
            _share(model, policy, parts)
    _hold(document, canary, list(shares))
    del document["strategies"][canary]


def _share(model: Any, policy: str, others: dict[str, float]) -> None:
    """Give the parts `others` of a policy's share of a model to other policies."""
    canary = model.get("canary", {}) if isinstance(model, dict) else None
    if not isinstance(canary, dict) or not all(isinstance(each, int | float) for each in canary.values()):
        return
    rest = 1.0 - sum(canary.values()) if model.get("policy") == policy else 0.0
    share = canary.get(policy, 0.0)
    new = {name: (rest + share) * part for name, part in others.items()}
    if share:
        canary[policy] = share * (1.0 - sum(others.values()))
    model["canary"] = {**canary, **{name: part for name, part in new.items() if part > 0.0}}


def _point(document: Any, name: str, pool: Any, replaced: Replaced) -> None:
    """Targets of a fixed strategy name its pool instead."""
    for policy, settings in _map(document, "policies").items():
        for place, target in _targets(settings):
            if target.get("strategy") == name and "pool" not in target:
                del target["strategy"]
                target["pool"] = pool
                replaced["policies", replaced.get(("policies", policy), policy), *place, "pool"] = "strategy"
    _hold(document, name, [])
    del document["strategies"][name]


def _hold(document: Any, name: str, instead: list[str]) -> None:
    """Replace a strategy whose choices are held for a conversation."""
    session = _map(_map(document, "controllers"), "session")
    if isinstance(held := session.get("strategies"), list):
        session["strategies"] = [new for old in held for new in (instead if old == name else [old])]


def _canary(strategy: Any) -> dict[str, float]:
    """Strategy to share of a canary of strategies; empty for any other, or if it makes no sense."""
    weights = _map(strategy, "strategies")
    if (
        not weights
        or "weights" in strategy
        or not all(isinstance(each, int | float) and each >= 0 for each in weights.values())
    ):
        return {}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight > 0} if total > 0 else {}


def _matching(node: Any, pattern: list[str]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping at a path of the pattern, with its path."""
    if isinstance(node, dict) and not pattern:
        yield (), node
    elif isinstance(node, dict):
        for key in list(node) if pattern[0] == "*" else pattern[:1]:
            for path, found in _matching(node.get(key), pattern[1:]):
                yield (key, *path), found


def _map(node: Any, key: str) -> dict[str, Any]:
    found = node.get(key) if isinstance(node, dict) else None
    return found if isinstance(found, dict) else {}


def _targets(policy: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every target of a policy with its place in it."""
    yield from _matching(policy, ["otherwise"])
    rules = policy.get("rules") if isinstance(policy, dict) else None
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        if isinstance(rule, dict):
            yield ("rules", str(index)), rule

"""Rewrites settings of the previous release before validation; each use gives one note.

`rewrite` works on the plain document: the file merged with the environment's settings. It records the
replaced keys, so that an error about a rewritten setting shows what the operator wrote.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.base import Problem

RENAMED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("encoder", "lanes"), "threads"),
    (("strategies", "*", "unsure"), "on_unknown"),
    (("strategies", "*", "artefact"), "artifact"),
    (("controllers", "budgets", "*", "leaning_max"), "bias_max"),
)
"""Path of an old name, as in `matching`, to the new name."""

Replaced = dict[tuple[str, ...], str]
"""Path with its last key renamed, to the key that the operator wrote."""


def rewrite(document: Any, locate: Callable[[Problem], str], replaced: Replaced) -> list[str]:
    """Rewrite in place and add to `replaced`; returns the notes.

    `locate` puts a problem's location before its message. Raises ConfigError if both an old name and
    its new name are given.
    """
    notes: list[str] = []

    def note(message: str, *path: str) -> None:
        notes.append(locate(Problem(path, f"{message}; the next release will not read it")).splitlines()[0])

    for (*parents, old), new in RENAMED:
        for path, node in matching(document, parents):
            if old in node and new in node:
                message = f"is the old name of {new}, which is also set: remove the old name"
                raise ConfigError([locate(Problem((*path, old), message))])
            if old in node:
                note(f"is now called {new}", *path, old)
                node[new] = node.pop(old)
                replaced[*path, new] = old
    for (_, name), strategy in matching(document, ["strategies", "*"]):
        if shares := _canary(strategy):
            write = f"one policy for each of {', '.join(shares)}, and shares in models.NAME.canary"
            note(f"is a canary of strategies: write {write}", "strategies", name)
            _split(document, name, shares, replaced)
            _remove(document, name, list(shares))
    for (_, name), strategy in matching(document, ["strategies", "*"]):
        if strategy.get("kind") == "fixed" and "pool" in strategy:
            pool = strategy["pool"]
            note(f"is `kind: fixed`: write `pool: {pool}` in the target", "strategies", name)
            for (_, policy, *place), target in _targets(document, name, "policies", "*"):
                if "pool" not in target:
                    del target["strategy"]
                    target["pool"] = pool
                    written = replaced.get(("policies", policy), policy)
                    replaced["policies", written, *place, "pool"] = "strategy"
            _remove(document, name, [])
    return notes


def matching(node: Any, pattern: Sequence[str]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping whose path matches the pattern, with its path; `*` is any key, `#` any index."""
    if not pattern:
        if isinstance(node, dict):
            yield (), node
        return
    if isinstance(node, list) and pattern[0] == "#":
        node = {str(index): item for index, item in enumerate(node)}
    for key, inner in list(node.items()) if isinstance(node, dict) else ():
        if pattern[0] in ("*", "#", key):
            yield from (((key, *path), found) for path, found in matching(inner, pattern[1:]))


def _targets(node: Any, name: str, *place: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every target of the policies at `place` that names a strategy, with its path."""
    for pattern in ((*place, "otherwise"), (*place, "rules", "#")):
        yield from (found for found in matching(node, pattern) if found[1].get("strategy") == name)


def _canary(strategy: dict[str, Any]) -> dict[str, float]:
    """Strategy to its share in a canary of strategies; empty for other settings or invalid shares."""
    weights = strategy.get("strategies")
    if not isinstance(weights, dict) or "weights" in strategy:
        return {}
    if not all(isinstance(each, int | float) and each >= 0 for each in weights.values()):
        return {}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def _split(document: Any, canary: str, shares: dict[str, float], replaced: Replaced) -> None:
    """Turn a canary of strategies into one policy per strategy and canary shares of the models."""
    first, *others = shares
    for (_, policy), settings in matching(document, ["policies", "*"]):
        if not any(_targets(settings, canary)):
            continue
        parts = {f"{policy}:{canary}:{drawn}": shares[drawn] for drawn in others}
        for name, drawn in zip((*parts, policy), (*others, first), strict=True):
            document["policies"][name] = copied = copy.deepcopy(settings)
            replaced["policies", name] = replaced.get(("policies", policy), policy)
            for _, target in _targets(copied, canary):
                target["strategy"] = drawn
        for _, model in matching(document, ["models", "*"]):
            _share(model, policy, parts)


def _share(model: dict[str, Any], policy: str, others: dict[str, float]) -> None:
    """Split a policy's share of a model: move the fractions in `others` to other policies."""
    canary = model.setdefault("canary", {})
    if not isinstance(canary, dict) or not all(isinstance(each, int | float) for each in canary.values()):
        return
    share = canary.get(policy, 0.0)
    if model.get("policy") == policy:
        share += 1.0 - sum(canary.values())
    if policy in canary:
        canary[policy] *= 1.0 - sum(others.values())
    canary.update((name, share * part) for name, part in others.items() if share * part > 0.0)


def _remove(document: Any, name: str, instead: list[str]) -> None:
    """Delete a strategy, and replace it in the sessions' list of strategies with `instead`."""
    for _, session in matching(document, ["controllers", "session"]):
        if isinstance(held := session.get("strategies"), list):
            session["strategies"] = [new for old in held for new in (instead if old == name else [old])]
    del document["strategies"][name]

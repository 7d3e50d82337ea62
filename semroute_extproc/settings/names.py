"""The model names that clients may use: routed models, pools' models, their aliases and patterns. Pure."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from semroute_extproc.settings.base import Problem
from semroute_extproc.settings.policies import Policy
from semroute_extproc.settings.pools import Pool, VirtualModel

Models = Mapping[str, VirtualModel]
Policies = Mapping[str, Policy]
Pools = Mapping[str, Pool]
MATCHED_CHARACTERS_MAX = 256  # longer names match no pattern


class Named(NamedTuple):
    """What a client's name means: a routed model, or a pool."""

    model: str = ""
    pool: str = ""


class Card(NamedTuple):
    """A model in the list of models."""

    id: str
    owner: str
    context: int  # tokens, for prompt and answer; of a routed model, the largest of the pools it may go to


class Names:
    """Finds what a name means. An exact name wins, then one in another case, then the longest pattern."""

    def __init__(self, models: Models, policies: Policies, pools: Pools, default_pool: str) -> None:
        self.pools = pools
        routed = ((name, policies[each.policy]) for name, each in models.items())
        self.cards = [Card(name, "semroute", _context(policy, pools)) for name, policy in routed]
        self._exact = {name: Named(model=name) for name in models}
        # Of several pools with one model, the default pool or the first one.
        for name in (default_pool, *pools):
            if (model := pools[name].model) not in self._exact:
                self._exact[model] = Named(pool=name)
                self.cards.append(Card(model, pools[name].owned_by, pools[name].context))
        aliases = {alias: named for _, alias, named in _aliases(models, pools)}
        self._exact = {**aliases, **self._exact}
        self._folded = {name.lower(): named for name, named in reversed(self._exact.items())}
        patterns = sorted((each for each in aliases if "*" in each), key=_literals, reverse=True)
        folded = (each.lower().partition("*") for each in patterns)
        self._patterns = [(*each[::2], aliases[alias]) for each, alias in zip(folded, patterns, strict=True)]

    def find(self, asked: str) -> Named | None:
        """The meaning of a client's name; None if it has none, and for the empty name."""
        if found := self._exact.get(asked) or self._folded.get(folded := asked.lower()):
            return found
        if not 0 < len(asked) <= MATCHED_CHARACTERS_MAX:
            return None
        for start, rest, named in self._patterns:
            if folded.startswith(start) and _ends(folded[len(start) :], rest):
                return named
        return None


def ambiguous(models: Models, pools: Pools) -> Iterator[Problem]:
    """Aliases whose names have another meaning too, or that overlap with an equally specific pattern."""
    owners = {pool.model.lower(): Named(pool=name) for name, pool in pools.items()}
    owners |= {name.lower(): Named(model=name) for name in models}
    for path, alias, named in _aliases(models, pools):
        if taken := owners.get(alias.lower()):
            yield Problem(path, f"{alias!r} is already a name of {taken.model or f'pool {taken.pool}'}")
            continue
        for other, owner in owners.items():
            equal = "*" in alias and "*" in other and _literals(alias) == _literals(other)
            if equal and owner != named and _overlap(alias.lower(), other):
                whose = owner.model or f"pool {owner.pool}"
                both = f"{alias!r} and {other!r} of {whose} match the same names"
                yield Problem(path, f"{both}: make one longer")
        owners[alias.lower()] = named


def _aliases(models: Models, pools: Pools) -> Iterator[tuple[tuple[str | int, ...], str, Named]]:
    """Every alias with its path in the configuration and its meaning."""
    owners = [(("models", name), each.aliases, Named(model=name)) for name, each in models.items()]
    owners += [(("pools", name), each.aliases, Named(pool=name)) for name, each in pools.items()]
    for path, aliases, named in owners:
        yield from (((*path, "aliases", index), alias, named) for index, alias in enumerate(aliases))


def _context(policy: Policy, pools: Pools) -> int:
    """The largest context of the pools that a policy names; of all pools if a strategy chooses."""
    targets = [target for target in (*policy.rules, policy.otherwise) if target.deny is None]
    named = [target.pool for target in targets if target.pool is not None]
    return max(pools[name].context for name in (named if len(named) == len(targets) and named else pools))


def _ends(text: str, pattern: str) -> bool:
    """Whether a text ends as a pattern with at most one `*` does; in linear time."""
    middle, _, end = pattern.rpartition("*")
    return text.endswith(end) and middle in text[: len(text) - len(end)]


def _literals(pattern: str) -> int:
    """How specific a pattern is: its characters that are not wildcards."""
    return len(pattern) - pattern.count("*")


@lru_cache(maxsize=65_536)
def _overlap(one: str, two: str) -> bool:
    """Whether some name matches both patterns."""
    if not one or not two:
        return not (one + two).strip("*")
    if one[0] == "*":
        return _overlap(one[1:], two) or _overlap(one, two[1:])
    if two[0] == "*":
        return _overlap(two, one)
    return one[0] == two[0] and _overlap(one[1:], two[1:])

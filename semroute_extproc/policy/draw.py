"""Weighted draws that give a retried request the same result, which its client cannot choose. Pure.

A draw is a keyed hash of the request id and the last turn. With the id alone, a client could find an id with
the result that it wants, and use it for every request.
"""

import bisect
import hashlib
import itertools
from collections.abc import Mapping

from semroute_extproc.policy.context import RoutingContext

DRAWN_CHARACTERS_MAX = 4_096  # Characters of the last turn that are hashed.


def drawn(weights: Mapping[str, float], name: str, request: str) -> str:
    """Draw a name by weight; at least one weight is positive. `name` makes draws independent."""
    bounds = list(itertools.accumulate(weights.values()))
    point = unit_interval(name, request) * bounds[-1]
    return list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]


def draw_id(context: RoutingContext) -> str:
    """A hash of the request, the same for its repetitions."""
    view, half = context.view, DRAWN_CHARACTERS_MAX // 2
    last = view.turns[-1].text if view.turns else ""
    size = str(view.characters), str(len(view.turns))
    return _digest(context.head.request_id, last[:half], last[-half:], *size, key=context.draw_key).hex()


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends only on `parts` and is uniformly distributed over them."""
    return (int.from_bytes(_digest(*parts)) >> 11) / (1 << 53)


def _digest(*parts: str, key: bytes = b"") -> bytes:
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()

"""Weighted draws that give a retried request the same result. Pure.

A draw depends on the request id. Without an id (Envoy sends one by default) it depends on the last turn of
the conversation, so the same request still gets the same draw and different requests spread out.
"""

import bisect
import hashlib
import itertools
from collections.abc import Mapping

from semroute_extproc.policy.context import RoutingContext

DRAWN_CHARACTERS_MAX = 4_096  # Characters of the last turn that are hashed if there is no request id.


def drawn(weights: Mapping[str, float], name: str, request: str) -> str:
    """Draw a name by weight; at least one weight is positive. `name` makes draws independent."""
    bounds = list(itertools.accumulate(weights.values()))
    point = unit_interval(name, request) * bounds[-1]
    return list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]


def draw_id(context: RoutingContext) -> str:
    """The request id, or a hash of the last turn if there is none."""
    if given := context.head.request_id:
        return given
    view, half = context.view, DRAWN_CHARACTERS_MAX // 2
    last = view.turns[-1].text if view.turns else ""
    return _digest(last[:half], last[-half:], str(view.characters), str(len(view.turns))).hex()


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends only on `parts` and is uniformly distributed over them."""
    return (int.from_bytes(_digest(*parts)) >> 11) / (1 << 53)


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()

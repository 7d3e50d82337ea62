"""Draws by weight that a retry repeats. Pure.

They depend on the request id. Without one (Envoy sends it unless told not to) they depend on the
conversation's last turn: the same request still gets the same draw, and different ones are spread out.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping

from semroute_extproc.policy.context import RoutingContext

DRAWN_CHARACTERS_MAX = 4_096  # Of the last turn: a draw without a request id depends on so many.


def drawn(weights: Mapping[str, float], name: str, request: str) -> str:
    """One of the names in `weights`, at least one of them positive; `name` tells draws apart."""
    bounds = list(itertools.accumulate(weights.values()))
    point = unit_interval(name, request) * bounds[-1]
    return list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]


def draw_id(context: RoutingContext) -> str:
    """The request id, or else a hash of the last turn."""
    if given := context.head.request_id:
        return given
    view, half = context.view, DRAWN_CHARACTERS_MAX // 2
    last = view.turns[-1].text if view.turns else ""
    return _digest(last[:half], last[-half:], str(view.characters), str(len(view.turns))).hex()


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends on `parts` alone and is uniform over them."""
    return (int.from_bytes(_digest(*parts)) >> 11) / (1 << 53)


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()

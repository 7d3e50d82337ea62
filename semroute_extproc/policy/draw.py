"""Draws by request id, so that a retry is drawn as the first try was. Pure.

Without an id (Envoy sends one by default) the conversation's last words decide: the same
request still goes to the same place, and different ones are still spread out.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Mapping

from semroute_extproc.policy.context import RoutingContext

DRAWN_CHARACTERS_MAX = 4_096
"""Characters of the last turn that a draw without a request id depends on."""


def drawn(weights: Mapping[str, float], name: str, request: str) -> str:
    """One of the names in `weights` by weight; one of them must be positive."""
    bounds = list(itertools.accumulate(weights.values()))
    point = unit_interval(name, request) * bounds[-1]
    return list(weights)[min(bisect.bisect_right(bounds, point), len(bounds) - 1)]


def draw_id(context: RoutingContext) -> str:
    """The request's identity in a draw: its id, or else a hash of its last turn."""
    if given := context.head.request_id:
        return given
    view = context.view
    last = view.turns[-1].text if view.turns else ""
    half = DRAWN_CHARACTERS_MAX // 2
    parts = (last[:half], last[-half:], str(view.characters), str(len(view.turns)))
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def unit_interval(*parts: str) -> float:
    """A number in [0, 1) that depends on `parts` alone and is uniform over them."""
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)

"""The plan of a request that may go to another pool if its pool fails. Pure.

The sidecar writes the plan into a header with its decision. If the pool fails before its first byte, Envoy
returns the request to the sidecar with that header and the kind of failure. The sidecar restores the body and
decides again without the pools that failed (docs/adr/0016-envoy-hands-a-failed-request-back.md). Envoy
removes both headers from clients' requests.
"""

import base64
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from semroute_extproc.request.view import RequestHead

HANDOVER_HEADER = "x-semroute-failover"  # The plan; Envoy keeps it between the attempts.
FAILURE_HEADER = "x-semroute-failed"  # How the pool failed; set by Envoy.

CONTEXT = "context"  # The prompt does not fit the pool's context; says nothing about its health.
UNREACHABLE = "unreachable"
FAILURES = (UNREACHABLE, CONTEXT, "429", "500", "502", "503", "504")
OTHER = "other"  # What Envoy reports beyond `FAILURES`, which are a metric's labels.

PLAN_CHARACTERS_MAX = 8_192  # Of the header. A longer plan, which holds large members, is not made.

_KEPT = ("store", "background")
_NULL, _FALSE, _EMPTY = Raw(b"null"), Raw(b"false"), Raw(b'""')
_ORIGINAL = msgspec.json.Decoder(dict[str, Raw])


class Handover(msgspec.Struct, frozen=True):
    """A request whose pool may fail, or has failed."""

    tried: tuple[str, ...]  # Pools in order, at least one; the last may fail, or has failed.
    original: Mapping[str, Raw]  # What the client sent in the members that we set; null if it was absent.
    failure: str = ""  # One of `FAILURES`, or `OTHER`; empty until the pool has failed.
    cluster: str = ""  # The Envoy cluster that hands the request back; empty once it did.

    @property
    def header(self) -> str:
        """The value of `HANDOVER_HEADER`; names of pools have neither spaces nor commas."""
        return f"{','.join(self.tried)} {base64.b64encode(msgspec.json.encode(self.original)).decode()}"


def plan(
    tried: tuple[str, ...], cluster: str, members: Mapping[str, Raw], edited: Iterable[str], stored: bool
) -> Handover | None:
    """The plan for a body with `members`, of which `edited` are set; None if it must not be repeated.

    A body is not repeated if it continues stored state or, without `stored`, asks to store some. A response
    that leaves `store` out is repeated, because vLLM stores none unless its operator turns that on.
    """
    if members.get("previous_response_id", _NULL) not in (_NULL, _EMPTY):
        return None
    if not stored and any(members.get(key, _NULL) not in (_NULL, _FALSE) for key in _KEPT):
        return None
    made = Handover(tried, {key: members.get(key, _NULL) for key in edited}, cluster=cluster)
    return made if len(made.header) <= PLAN_CHARACTERS_MAX else None


def read(head: RequestHead, pools: Collection[str]) -> Handover | None:
    """The plan of a request that Envoy hands back; None for any other request, and for unknown pools."""
    names, _, original = head.headers.get(HANDOVER_HEADER, "").partition(" ")
    tried = tuple(names.split(","))
    if not all(name in pools for name in tried):
        return None
    failure = head.headers.get(FAILURE_HEADER, "")
    try:
        members = _ORIGINAL.decode(base64.b64decode(original, validate=True))
    except (ValueError, msgspec.DecodeError):
        return None
    return Handover(tried, members, failure if failure in FAILURES else OTHER)


def restored(members: Mapping[str, Any], failed: Handover) -> dict[str, Any]:
    """The members of a body as the client sent them."""
    merged = {**members, **failed.original}
    return {key: value for key, value in merged.items() if key not in failed.original or value != _NULL}

"""Which API a path belongs to (paths.toml), and the model that a path or a query names. Pure."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from string import punctuation
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus

import msgspec

from semroute_extproc.request.view import Api

_PATHS = msgspec.toml.decode(Path(__file__).with_name("paths.toml").read_bytes(), type=dict[Api, list[str]])
PATHS: Mapping[str, Api] = {path: api for api, paths in _PATHS.items() for path in paths}
MODELS = "/v1/models"
STORED = re.compile(r"/v1/responses/([\w-]+)(?:/(?:cancel|input_items))?", re.ASCII)  # none asks a model
DEPLOYMENTS = "/openai/deployments/"  # Azure's paths: the name of the model follows
PLACES_MAX = 64  # cached paths, each of up to 96 KiB
_NAMED = re.compile("(?:^|&)model=([^&]{1,1024})")  # in a query; reading all of one takes up to 0.1 s


class Place(NamedTuple):
    """What a request's path means."""

    path: str  # as vLLM spells it if it is known, without the query
    api: Api | None = None
    model: str = ""  # named by the path, or else by the query
    rewritten: str = ""  # the path and query for the pool; empty if they stay as sent


@lru_cache(maxsize=PLACES_MAX)
def place_of(path: str, prefixes: tuple[str, ...] = ()) -> Place:
    """Read a path with its query, also with escapes, a prefix, a final slash, or without `/v1`."""
    sent, mark, query = path.partition("?")
    bare = "/" + unquote(sent).strip("/")
    named = unquote_plus(found[1]) if (found := _NAMED.search(query)) else ""
    known = next((rest for prefix in ("", *prefixes) if (rest := _known(bare, prefix))), "")
    if not known and bare.startswith(DEPLOYMENTS):
        ends = (each for each in PATHS if each.startswith("/v1/") and bare.endswith(each[3:]))
        known = max(ends, key=len, default="")
        deployment = bare[len(DEPLOYMENTS) : 3 - len(known)] if known else ""
        known, named = (known, deployment) if deployment else ("", named)
    own = known in (sent, "") or known.startswith(MODELS)  # the sidecar answers for the models that it knows
    rewritten = "" if own else quote(known + mark + query, safe=punctuation)
    return Place(known or sent, PATHS.get(known), named, rewritten)


def _known(path: str, prefix: str) -> str:
    """The path without the prefix if it is known, with `/v1` added if missing; else empty."""
    rest = path[len(prefix) :] if path.startswith(prefix) else ""
    for each in (rest, "/v1" + rest):
        if each in PATHS or each == MODELS or each.startswith(MODELS + "/") or STORED.fullmatch(each):
            return each
    return ""

"""Responses that the sidecar sends to clients itself: errors and the list of models. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from semroute_extproc.outcome import DirectAnswer
from semroute_extproc.request.view import Api


def error(status: int, kind: str, code: str, message: str, anthropic: bool = False) -> DirectAnswer:
    """An error in OpenAI's format; `anthropic` adds the member that Anthropic's API needs."""
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if anthropic:
        body = {"type": "error", **body}
    return DirectAnswer(status, json.dumps(body).encode(), f"semroute_{code}")


def too_large(limit: int, api: Api) -> DirectAnswer:
    """413 for a body over `limit` bytes."""
    message = f"The request body is larger than {limit} bytes."
    return error(413, "invalid_request_error", "request_too_large", message, api is Api.MESSAGES)


def models(path: str, names: Sequence[str]) -> DirectAnswer | None:
    """The list of models or one of them, in OpenAI's shape; None if `path` is neither."""
    each = {name: {"id": name, "object": "model", "created": 0, "owned_by": "semroute"} for name in names}
    name = path.removeprefix("/v1/models/")
    body: Mapping[str, Any] | None = each.get(name) if name != path else None
    if path == "/v1/models":
        body = {"object": "list", "data": list(each.values())}
    return DirectAnswer(200, json.dumps(body).encode(), "semroute_models") if body else None

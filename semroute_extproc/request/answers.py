"""Responses that the sidecar sends to clients itself: errors and the list of models. Pure."""

import json
from typing import Any

from semroute_extproc.outcome import DirectAnswer
from semroute_extproc.request.paths import MODELS
from semroute_extproc.request.view import Api
from semroute_extproc.settings.names import Card, Names


def error(status: int, kind: str, code: str, message: str, api: Api) -> DirectAnswer:
    """An error in OpenAI's format, with the additional member of Anthropic's for its API."""
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if api in (Api.MESSAGES, Api.COUNT_TOKENS):
        body = {"type": "error", **body}
    return DirectAnswer(status, json.dumps(body).encode(), f"semroute_{code}")


def too_large(limit: int, api: Api) -> DirectAnswer:
    """413 for a body over `limit` bytes."""
    message = f"The request body is larger than {limit} bytes."
    return error(413, "invalid_request_error", "request_too_large", message, api)


def too_many_headers(api: Api) -> DirectAnswer:
    """431 for headers so near to Envoy's limits that the request cannot be changed."""
    message = "The request has too many headers, or they are too large."
    return error(431, "invalid_request_error", "too_many_headers", message, api)


def models(path: str, names: Names, anthropic: bool = False) -> DirectAnswer | None:
    """The list of models or one of them, in OpenAI's or Anthropic's format; None for other paths.

    A single model has any name that `Names` finds.
    """
    shape, asked = _anthropic if anthropic else _openai, path.removeprefix(MODELS + "/")
    if path == MODELS:
        data = [shape(card, card.id) for card in names.cards]
        pages = {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        body = {"data": data, **(pages if anthropic else {"object": "list"})}
    elif asked != path and (named := names.find(asked)) is not None:
        wanted = named.model or names.pools[named.pool].model
        body = shape(next(card for card in names.cards if card.id == wanted), asked)
    else:
        return None
    return DirectAnswer(200, json.dumps(body).encode(), "semroute_models")


def _openai(card: Card, name: str) -> dict[str, Any]:
    owned = {"id": name, "object": "model", "created": 0, "owned_by": card.owner}
    return {**owned, "max_model_len": card.context}


def _anthropic(card: Card, name: str) -> dict[str, Any]:
    dated = {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {**dated, "max_input_tokens": card.context}

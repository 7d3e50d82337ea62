"""The APIs whose requests are routed by content, one module each.

Pure. A reader decodes only the fields it names and skips the rest at the speed of a scan, base64
images above all. An optional field of the wrong type counts as not given: only the upstream refuses
requests for that. An unreadable body raises BadBody:

    not_json         no JSON (a byte order mark, invalid UTF-8 and lone surrogates included)
    too_deep         nested deeper than the parser's stack
    wrong_type       not an object, or `messages`, `input`, `prompt` or `model` of the wrong type
    too_many_parts   more messages and parts than reading.ELEMENTS_MAX
    no_text          no text and no images

Of duplicate keys the last one counts, as for Python's own parser and thus for vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.apis import chat_completions, completions, embeddings, messages, responses
from semroute_extproc.request.view import Api, RequestView

T = TypeVar("T")

PATHS: Mapping[str, Api] = {
    "/v1/chat/completions": Api.CHAT_COMPLETIONS,
    "/v1/completions": Api.COMPLETIONS,
    "/v1/responses": Api.RESPONSES,
    "/v1/messages": Api.MESSAGES,
    "/v1/embeddings": Api.EMBEDDINGS,
}
"""Path without query to its API. `/v1/messages/count_tokens` is not one: it runs no model."""

_READERS: Mapping[Api, Callable[[bytes], RequestView]] = {
    Api.CHAT_COMPLETIONS: chat_completions.read,
    Api.COMPLETIONS: completions.read,
    Api.RESPONSES: responses.read,
    Api.MESSAGES: messages.read,
    Api.EMBEDDINGS: embeddings.read,
}


class _OnlyModel(msgspec.Struct):
    model: str = ""


_MODEL = msgspec.json.Decoder(_OnlyModel)


def model_of(body: bytes) -> str:
    """The model that a body names, empty if none; decodes nothing else; raises BadBody."""
    return _read(_MODEL.decode, body).model


def parse(api: Api, body: bytes) -> RequestView:
    """The facts of a request's body; raises only BadBody, for any bytes."""
    return _read(_READERS[api], body)


def _read(reader: Callable[[bytes], T], body: bytes) -> T:
    try:
        return reader(body)
    except msgspec.ValidationError as error:
        raise BadBody(Cause.WRONG_TYPE, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadBody(Cause.NOT_JSON) from None
    except RecursionError:
        raise BadBody(Cause.TOO_DEEP) from None

"""The bodies of the APIs. Pure.

A body's struct declares only the fields that are needed, so msgspec skips the rest, such as base64 images,
without decoding. An optional field of the wrong type counts as absent. An unreadable body raises BadBody:
`not_json` (also for invalid UTF-8 or lone surrogates), `too_deep`, `wrong_type` or `too_many_parts`. Of
duplicate keys the last one counts, as in vLLM.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.apis import anthropic, openai
from semroute_extproc.request.view import Api, RequestView

T = TypeVar("T")

_BODIES = {**openai.BODIES, **anthropic.BODIES}
TEXT_APIS = frozenset(_BODIES)  # whose requests have text to route by

_MODEL = msgspec.json.Decoder[Any](msgspec.defstruct("OnlyModel", [("model", msgspec.Raw, msgspec.Raw())]))
_NAME = msgspec.json.Decoder(str | None)


def model_of(body: bytes) -> str:
    """The model that a body names, or ""; decodes nothing else. Raises BadBody."""
    raw = _read(_MODEL.decode, body).model
    return (_read(_NAME.decode, raw) if raw else None) or ""


def parse(api: Api, body: bytes) -> RequestView:
    """The facts of a request's body; raises only BadBody, for any bytes.

    Of an API without text to route by, such as `rerank`, only the model is read.
    """
    if api not in _BODIES:
        return RequestView(api, model_of(body))
    return _read(lambda raw: _BODIES[api].decode(raw).view(api), body)


def _read(reader: Callable[[Any], T], body: bytes | msgspec.Raw) -> T:
    try:
        return reader(body)
    except msgspec.ValidationError as error:
        raise BadBody(Cause.WRONG_TYPE, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadBody(Cause.NOT_JSON) from None
    except RecursionError:
        raise BadBody(Cause.TOO_DEEP) from None

"""The APIs whose requests are routed by content. Pure.

A body's struct declares only the fields that are needed, so msgspec skips the rest, such as base64 images,
without decoding. An optional field of the wrong type counts as absent. An unreadable body raises BadBody:
`not_json` (also for a byte order mark, invalid UTF-8 or lone surrogates), `too_deep`, `wrong_type`,
`too_many_parts` or `no_text`. Of duplicate keys the last one counts, as in vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.apis import anthropic, openai
from semroute_extproc.request.view import Api, RequestView

T = TypeVar("T")

PATHS: Mapping[str, Api] = {f"/v1/{api.replace('_', '/')}": api for api in Api}
"""Path without query to its API. `/v1/messages/count_tokens` is not included: it runs no model."""

_BODIES = {**openai.BODIES, **anthropic.BODIES}
_MODEL = msgspec.json.Decoder[Any](msgspec.defstruct("OnlyModel", [("model", str, "")]))


def model_of(body: bytes) -> str:
    """The model that a body names, or ""; decodes nothing else. Raises BadBody."""
    return str(_read(_MODEL.decode, body).model)


def parse(api: Api, body: bytes) -> RequestView:
    """The facts of a request's body; raises only BadBody, for any bytes."""
    return _read(lambda raw: _BODIES[api].decode(raw).view(api), body)


def _read(reader: Callable[[bytes], T], body: bytes) -> T:
    try:
        return reader(body)
    except msgspec.ValidationError as error:
        raise BadBody(Cause.WRONG_TYPE, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadBody(Cause.NOT_JSON) from None
    except RecursionError:
        raise BadBody(Cause.TOO_DEEP) from None

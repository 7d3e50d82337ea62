"""`POST /v1/completions`: OpenAI's text completion API."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT
from semroute_extproc.request.view import Api, RequestView


class _CompletionBody(reading.Body):
    prompt: Raw = ABSENT


_BODY = Decoder(_CompletionBody)
_TEXTS = Decoder(str | list[str] | None)
_TOKEN_IDS = Decoder(list[int | list[int]])


def read(body: bytes) -> RequestView:
    """The view of a completion request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    prompt(draft, request.prompt)
    return draft.view(
        Api.COMPLETIONS,
        request.model,
        stream=reading.flag(request.stream),
        json_mode=reading.asks_for_json(request.response_format, request.structured_outputs),
        max_output_tokens=reading.positive(request.max_tokens),
    )


def prompt(draft: reading.Draft, raw: Raw) -> None:
    """Add the turn of a prompt: a string, or a batch of them, which makes one turn.

    The prompts of a batch are answered one by one, so the longest one counts as the request's length:
    it must fit into a context window.
    """
    try:
        texts = (_TEXTS.decode(raw) if raw else None) or []
    except msgspec.ValidationError:
        if reading.optional(raw, _TOKEN_IDS) is not None:
            raise BadBody(Cause.NO_TEXT, "the prompt is token ids") from None
        raise
    if isinstance(texts, str):
        draft.say("user", texts)
    else:
        draft.say("user", "\n".join(texts))
        draft.characters = max(map(len, texts), default=0)

"""`POST /v1/completions`: OpenAI's text completion API."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.apis.reading import ABSENT, Body, Draft, asks_for_json, optional, positive
from semroute_extproc.request.view import Api, RequestView

_TEXTS = Decoder(str | list[str] | None)
_TOKEN_IDS = Decoder(list[int | list[int]])


class CompletionBody(Body):
    """A completion request."""

    prompt: Raw = ABSENT

    def view(self) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        add_prompt(draft, self.prompt)
        json_mode = asks_for_json(self.response_format, self.structured_outputs)
        limit = positive(self.max_tokens)
        return draft.view(Api.COMPLETIONS, self, json_mode=json_mode, max_output_tokens=limit)


def add_prompt(draft: Draft, raw: Raw) -> None:
    """Add the turn of a prompt: a string, or a batch of them, which makes one turn.

    The prompts of a batch are answered one by one, so the longest one counts as the request's length:
    it must fit into a context window.
    """
    try:
        texts = (_TEXTS.decode(raw) if raw else None) or []
    except msgspec.ValidationError:
        if optional(raw, _TOKEN_IDS) is not None:
            raise BadBody(Cause.NO_TEXT, "the prompt is token ids") from None
        raise
    if isinstance(texts, str):
        texts = [texts]
    draft.say("user", "\n".join(texts))
    draft.characters = max(map(len, texts), default=0)

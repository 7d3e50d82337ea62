"""`POST /v1/embeddings`: OpenAI's embedding API; vLLM also takes a conversation."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis import chat_completions, completions, reading
from semroute_extproc.request.apis.reading import ABSENT
from semroute_extproc.request.view import Api, RequestView


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    input: Raw = ABSENT
    messages: list[chat_completions.Message] | None = None


_BODY = Decoder(_Body)


def read(body: bytes) -> RequestView:
    """The view of an embedding request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    if request.messages:
        chat_completions.converse(draft, request.messages)
    else:
        completions.prompt(draft, request.input)
    return draft.view(Api.EMBEDDINGS, request.model)

"""`POST /v1/embeddings`: OpenAI's embedding API; vLLM also takes a conversation."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from semroute_extproc.request.apis import chat_completions, completions, reading
from semroute_extproc.request.view import Api, RequestView


class _EmbeddingBody(msgspec.Struct, gc=False):
    model: str | None = None
    input: Raw = reading.ABSENT
    messages: list[chat_completions.ChatMessage] | None = None


_BODY = msgspec.json.Decoder(_EmbeddingBody)


def read(body: bytes) -> RequestView:
    """The view of an embedding request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    if request.messages:
        chat_completions.converse(draft, request.messages)
    else:
        completions.prompt(draft, request.input)
    return draft.view(Api.EMBEDDINGS, request.model)

"""`POST /v1/embeddings`: OpenAI's embedding API; vLLM also takes a conversation."""

from __future__ import annotations

from msgspec import Raw

from semroute_extproc.request.apis.chat_completions import ChatMessage, converse
from semroute_extproc.request.apis.completions import add_prompt
from semroute_extproc.request.apis.reading import ABSENT, Body, Draft
from semroute_extproc.request.view import Api, RequestView


class EmbeddingBody(Body):
    """An embedding request."""

    input: Raw = ABSENT
    messages: list[ChatMessage] | None = None

    def view(self) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        if self.messages:
            converse(draft, self.messages)
        else:
            add_prompt(draft, self.input)
        return draft.view(Api.EMBEDDINGS, self, stream=False)

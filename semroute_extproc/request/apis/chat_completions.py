"""`POST /v1/chat/completions`: OpenAI's chat API, with vLLM's extensions."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from semroute_extproc.request.apis.reading import ABSENT, Body, Content, Draft, asks_for_json, given, positive
from semroute_extproc.request.view import Api, RequestView


class ChatMessage(msgspec.Struct, gc=False):
    """One message; `function_call` is the older form of `tool_calls`."""

    role: str | None = None
    content: Content = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT


class ChatBody(Body):
    """A chat request."""

    messages: list[ChatMessage] | None = None
    functions: Raw = ABSENT
    max_completion_tokens: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    thinking_token_budget: Raw = ABSENT

    def view(self) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        converse(draft, self.messages)
        draft.declare(self.tools)
        draft.declare(self.functions)
        # vLLM ignores `thinking` and `reasoning`, other vendors' spellings, but they show the client's intent.
        other = given(self.thinking_token_budget) or given(self.thinking) or given(self.reasoning)
        return draft.view(
            Api.CHAT_COMPLETIONS,
            self,
            tool_loop=bool(draft.turns) and draft.turns[-1].role == "tool",
            json_mode=asks_for_json(self.response_format, self.structured_outputs),
            max_output_tokens=positive(self.max_completion_tokens) or positive(self.max_tokens),
            **self.switches({("reasoning_effort",): self.reasoning_effort}, other),
        )


def converse(draft: Draft, messages: list[ChatMessage] | None) -> None:
    """Add a turn for each message."""
    draft.take(messages)
    for message in messages or ():
        draft.say(message.role, draft.read(message.content))
        draft.count(message.tool_calls)
        draft.count(message.function_call)

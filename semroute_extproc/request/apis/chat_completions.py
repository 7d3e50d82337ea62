"""`POST /v1/chat/completions`: OpenAI's chat API, with vLLM's extensions."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT, Content, given, positive
from semroute_extproc.request.view import Api, RequestView


class ChatMessage(msgspec.Struct, gc=False):
    """One message; `function_call` is the older form of `tool_calls`."""

    role: str | None = None
    content: Content = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT


class _ChatBody(reading.Body):
    messages: list[ChatMessage] | None = None
    functions: Raw = ABSENT
    max_completion_tokens: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    thinking_token_budget: Raw = ABSENT


_BODY = msgspec.json.Decoder(_ChatBody)


def read(body: bytes) -> RequestView:
    """The view of a chat request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    converse(draft, request.messages)
    draft.declare(request.tools)
    draft.declare(request.functions)
    # vLLM ignores `thinking` and `reasoning`, other vendors' spellings, but they show the client's intent.
    other = given(request.thinking_token_budget) or given(request.thinking) or given(request.reasoning)
    return draft.view(
        Api.CHAT_COMPLETIONS,
        request.model,
        stream=reading.flag(request.stream),
        tool_loop=bool(draft.turns) and draft.turns[-1].role == "tool",
        json_mode=reading.asks_for_json(request.response_format, request.structured_outputs),
        max_output_tokens=positive(request.max_completion_tokens) or positive(request.max_tokens),
        **reading.reasoning(
            request.chat_template_kwargs,
            {("reasoning_effort",): request.reasoning_effort},
            request.reasoning_effort,
            other=other,
        ),
    )


def converse(draft: reading.Draft, messages: list[ChatMessage] | None) -> None:
    """Add a turn for each message."""
    draft.take(messages)
    for message in messages or ():
        draft.say(message.role, draft.read(message.content))
        draft.count(message.tool_calls)
        draft.count(message.function_call)

"""`POST /v1/chat/completions`: OpenAI's chat API, with vLLM's extensions."""

from __future__ import annotations

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT, Content
from semroute_extproc.request.view import Api, RequestView


class Message(msgspec.Struct, gc=False):
    """One message; `function_call` is the older form of `tool_calls`."""

    role: str | None = None
    content: Content = None
    tool_calls: Raw = ABSENT
    function_call: Raw = ABSENT


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    messages: list[Message] | None = None
    stream: Raw = ABSENT
    tools: Raw = ABSENT
    functions: Raw = ABSENT
    response_format: Raw = ABSENT
    structured_outputs: Raw = ABSENT
    max_completion_tokens: Raw = ABSENT
    max_tokens: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    chat_template_kwargs: Raw = ABSENT
    thinking_token_budget: Raw = ABSENT
    thinking: Raw = ABSENT
    reasoning: Raw = ABSENT


_BODY = Decoder(_Body)


def read(body: bytes) -> RequestView:
    """The view of a chat request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    converse(draft, request.messages)
    draft.declare(request.tools)
    draft.declare(request.functions)
    in_template, template_effort = reading.template_switch(request.chat_template_kwargs)
    return draft.view(
        Api.CHAT_COMPLETIONS,
        request.model,
        stream=reading.flag(request.stream),
        tool_loop=bool(draft.turns) and draft.turns[-1].role == "tool",
        json_mode=reading.asks_for_json(request.response_format, request.structured_outputs),
        max_output_tokens=reading.positive(request.max_completion_tokens)
        or reading.positive(request.max_tokens),
        # The field beats the template's own argument in vLLM (ChatCompletionRequest.build_chat_params).
        effort=reading.effort_of(request.reasoning_effort) or template_effort,
        # `thinking` and `reasoning` are other vendors' spellings: vLLM ignores them, but they say
        # that the client has a will of its own.
        reasoning_set=in_template
        or reading.given(request.reasoning_effort)
        or reading.given(request.thinking_token_budget)
        or reading.given(request.thinking)
        or reading.given(request.reasoning),
        reasoning_paths=reading.switch_paths(
            request.chat_template_kwargs, {("reasoning_effort",): request.reasoning_effort}
        ),
    )


def converse(draft: reading.Draft, messages: list[Message] | None) -> None:
    """Add a turn for each message."""
    draft.take(messages)
    for message in messages or ():
        draft.say(reading.role_of(message.role), draft.read(message.content))
        draft.count(message.tool_calls)
        draft.count(message.function_call)

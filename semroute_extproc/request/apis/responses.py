"""`POST /v1/responses`: OpenAI's responses API."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT, Draft, inner, string
from semroute_extproc.request.view import Api, RequestView


class _Item(msgspec.Struct, gc=False):
    """One item of the input: a message, a tool's call or its result, reasoning, …"""

    type: str | None = None
    role: str | None = None
    content: Raw = ABSENT
    output: Raw = ABSENT
    arguments: Raw = ABSENT
    input: Raw = ABSENT


class _ResponsesBody(reading.Body):
    input: str | list[_Item] | None = None
    instructions: Raw = ABSENT
    text: Raw = ABSENT
    max_output_tokens: Raw = ABSENT
    previous_response_id: Raw = ABSENT


_BODY = msgspec.json.Decoder(_ResponsesBody)


def read(body: bytes) -> RequestView:
    """The view of a responses request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = Draft()
    if instructions := string(request.instructions):
        draft.say("system", instructions)
    tool_loop = _converse(draft, request.input)
    draft.declare(request.tools)
    effort = inner(request.reasoning).effort
    return draft.view(
        Api.RESPONSES,
        request.model,
        stream=reading.flag(request.stream),
        tool_loop=tool_loop,
        json_mode=reading.asks_for_json(inner(request.text).format, request.structured_outputs),
        max_output_tokens=reading.positive(request.max_output_tokens),
        stateful=bool(string(request.previous_response_id)),
        **reading.reasoning(request.chat_template_kwargs, {("reasoning", "effort"): effort}, effort),
    )


def _converse(draft: Draft, given: str | list[_Item] | None) -> bool:
    """Add the input's turns; returns whether the last item is a tool's result."""
    if isinstance(given, str):
        draft.say("user", given)
        return False
    draft.take(given)
    tool_loop = False
    for item in given or ():
        kind = item.type or "message"
        tool_loop = kind.endswith("_output")
        if kind == "message":
            content = reading.CONTENT.decode(item.content) if item.content else None
            draft.say(item.role, draft.read(content))
        elif tool_loop:
            draft.say("tool", _result(draft, item.output))
        elif kind.endswith("_call"):
            draft.count(item.arguments)
            draft.count(item.input)
    return tool_loop


def _result(draft: Draft, output: Raw) -> str:
    """The text of a tool's result; a single object is a screenshot or another medium."""
    content = reading.optional(output, reading.CONTENT)
    if content is None and string(inner(output).type):
        draft.images += 1
    return draft.read(content)

"""`POST /v1/responses`: OpenAI's responses API."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from semroute_extproc.request.apis.reading import (
    ABSENT,
    CONTENT,
    Body,
    Draft,
    asks_for_json,
    inner,
    optional,
    positive,
    string,
)
from semroute_extproc.request.view import Api, RequestView


class _Item(msgspec.Struct, gc=False):
    """One item of the input: a message, a tool's call or its result, reasoning, …"""

    type: str | None = None
    role: str | None = None
    content: Raw = ABSENT
    output: Raw = ABSENT
    arguments: Raw = ABSENT
    input: Raw = ABSENT


class ResponsesBody(Body):
    """A responses request."""

    input: str | list[_Item] | None = None
    instructions: Raw = ABSENT
    text: Raw = ABSENT
    max_output_tokens: Raw = ABSENT
    previous_response_id: Raw = ABSENT

    def view(self) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        if instructions := string(self.instructions):
            draft.say("system", instructions)
        tool_loop = _converse(draft, self.input)
        draft.declare(self.tools)
        return draft.view(
            Api.RESPONSES,
            self,
            tool_loop=tool_loop,
            json_mode=asks_for_json(inner(self.text).format, self.structured_outputs),
            max_output_tokens=positive(self.max_output_tokens),
            stateful=bool(string(self.previous_response_id)),
            **self.switches({("reasoning", "effort"): inner(self.reasoning).effort}),
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
            draft.say(item.role, draft.read(CONTENT.decode(item.content) if item.content else None))
        elif tool_loop:
            content = optional(item.output, CONTENT)
            if content is None and string(inner(item.output).type):
                draft.images += 1  # a single object is a screenshot or another medium
            draft.say("tool", draft.read(content))
        elif kind.endswith("_call"):
            draft.count(item.arguments)
            draft.count(item.input)
    return tool_loop

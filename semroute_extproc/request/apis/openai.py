"""OpenAI's chat completions, completions, responses and embeddings, with vLLM's extensions."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT, Body, Draft, given, inner, positive, string
from semroute_extproc.request.view import Api

_TEXTS = Decoder(str | list[str] | None)
_TOKEN_IDS = b"[0123456789, \t\r\n]"  # of one prompt or a batch; they are never decoded


class _ChatMessage(msgspec.Struct, gc=False):
    role: str | None = None
    content: reading.Content = None
    tool_calls: Raw = ABSENT
    tool_call_id: Raw = ABSENT
    function_call: Raw = ABSENT  # the older form of `tool_calls`


class _ChatBody(Body):
    messages: list[_ChatMessage] | None = None
    functions: Raw = ABSENT
    max_completion_tokens: Raw = ABSENT
    reasoning_effort: Raw = ABSENT
    thinking_token_budget: Raw = ABSENT

    def read(self, draft: Draft) -> dict[str, Any]:
        _converse(draft, self.messages or ())
        draft.declare(self.tools)
        draft.declare(self.functions)
        # vLLM ignores `thinking` and `reasoning`, other vendors' spellings; they show the client's intent.
        other = given(self.thinking_token_budget) or given(self.thinking) or given(self.reasoning)
        switches = self.switches({("reasoning_effort",): self.reasoning_effort}, other)
        tokens = positive(self.thinking_token_budget) or switches["thinking_tokens"]
        return {
            "tool_loop": bool(draft.turns) and draft.turns[-1].role == "tool",
            "json_mode": reading.asks_for_json(self.response_format, self.structured_outputs),
            **self.limit(max_completion_tokens=self.max_completion_tokens, max_tokens=self.max_tokens),
            **switches,
            "thinking_tokens": tokens,
        }


class _CompletionBody(Body):
    prompt: Raw = ABSENT

    def read(self, draft: Draft) -> dict[str, Any]:
        _prompt(draft, self.prompt)
        return {
            "json_mode": reading.asks_for_json(self.response_format, self.structured_outputs),
            **self.limit(max_tokens=self.max_tokens),
        }


class _EmbeddingBody(Body):
    input: Raw = ABSENT
    texts: Raw = ABSENT  # Cohere's spelling
    messages: list[_ChatMessage] | None = None  # vLLM also accepts a conversation here

    def read(self, draft: Draft) -> dict[str, Any]:
        if self.messages:
            _converse(draft, self.messages)
        else:
            _prompt(draft, self.input or self.texts)
        return {}


class _Item(msgspec.Struct, gc=False):
    """One item of a response's input: a message, a tool's call or its result, reasoning, …"""

    type: str | None = None
    role: str | None = None
    content: Raw = ABSENT
    output: Raw = ABSENT
    arguments: Raw = ABSENT
    input: Raw = ABSENT
    call_id: Raw = ABSENT


class _ResponsesBody(Body):
    input: str | list[_Item] | None = None
    instructions: Raw = ABSENT
    text: Raw = ABSENT
    max_output_tokens: Raw = ABSENT

    def read(self, draft: Draft) -> dict[str, Any]:
        if instructions := string(self.instructions):
            draft.say("system", instructions)
        tool_loop = _follow(draft, self.input)
        draft.declare(self.tools)
        return {
            "tool_loop": tool_loop,
            "json_mode": reading.asks_for_json(inner(self.text).format, self.structured_outputs),
            **self.limit(max_output_tokens=self.max_output_tokens),
            "stateful": bool(string(self.previous_response_id)),
            **self.switches({("reasoning", "effort"): inner(self.reasoning).effort}),
        }


BODIES = {
    Api.CHAT_COMPLETIONS: Decoder[Body](_ChatBody),
    Api.COMPLETIONS: Decoder[Body](_CompletionBody),
    Api.RESPONSES: Decoder[Body](_ResponsesBody),
    Api.EMBEDDINGS: Decoder[Body](_EmbeddingBody),
}


def _converse(draft: Draft, messages: Sequence[_ChatMessage]) -> None:
    draft.take(messages)
    for message in messages:
        draft.say(message.role, draft.read(message.content))
        draft.answer(message.tool_call_id)
        draft.count(message.tool_calls)
        draft.count(message.function_call)


def _prompt(draft: Draft, raw: Raw) -> None:
    """Add a prompt's turn: a string or a batch; each prompt of a batch must fit, so the longest counts.

    Token ids have no text, and neither have prompt embeddings, which replace the prompt.
    """
    try:
        texts = (_TEXTS.decode(raw) if raw else None) or []
    except msgspec.ValidationError:
        ids = bytes(raw)
        if ids[:1] != b"[" or ids.translate(None, _TOKEN_IDS):
            raise
        return
    if isinstance(texts, str):
        draft.say("user", texts)
    else:
        draft.say("user", "\n".join(texts))
        draft.counts["characters"] = max(map(len, texts), default=0)


def _follow(draft: Draft, items: str | list[_Item] | None) -> bool:
    """Add the turns of a response's input; returns whether the last item is a tool's result."""
    if isinstance(items, str):
        draft.say("user", items)
        return False
    draft.take(items or ())
    tool_loop = False
    for item in items or ():
        kind = item.type or "message"
        tool_loop = kind.endswith("_output")
        if kind == "message":
            draft.say(item.role, draft.read(reading.CONTENT.decode(item.content) if item.content else None))
        elif tool_loop:
            draft.answer(item.call_id)
            content = reading.optional(item.output, reading.CONTENT)
            if content is None and (medium := string(inner(item.output).type)):
                draft.attach(medium)  # a single object is a screenshot or another medium
            draft.say("tool", draft.read(content))
        elif kind.endswith("_call"):
            draft.count(item.arguments)
            draft.count(item.input)
    return tool_loop

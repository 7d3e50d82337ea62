"""`POST /v1/messages`: Anthropic's messages API."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT
from semroute_extproc.request.view import Api, RequestView

NESTING_MAX = 3
"""How deep blocks are read within blocks (a search result in a tool's result in a message): each
level decodes its content once more, so without a bound the cost would be quadratic."""


class _Block(msgspec.Struct, gc=False):
    """One block of content: text, image, document, a tool's use or its result, thinking, …"""

    type: str | None = None
    text: str | None = None
    content: Raw = ABSENT
    input: Raw = ABSENT
    source: Raw = ABSENT


class _Message(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | list[_Block] | None = None


class _Source(msgspec.Struct, gc=False):
    type: str | None = None
    data: Raw = ABSENT
    content: Raw = ABSENT


class _OutputConfig(msgspec.Struct, gc=False):
    effort: Raw = ABSENT
    format: Raw = ABSENT


class _Body(msgspec.Struct, gc=False):
    model: str | None = None
    system: Raw = ABSENT
    messages: list[_Message] | None = None
    stream: Raw = ABSENT
    tools: Raw = ABSENT
    max_tokens: Raw = ABSENT
    thinking: Raw = ABSENT
    output_config: Raw = ABSENT
    chat_template_kwargs: Raw = ABSENT


_BODY = Decoder(_Body)
_BLOCKS = Decoder(str | list[_Block])
_SOURCE = Decoder(_Source)
_OUTPUT_CONFIG = Decoder(_OutputConfig)


def read(body: bytes) -> RequestView:
    """The view of a messages request; raises msgspec's errors, or BadBody if there is no text."""
    request = _BODY.decode(body)
    draft = reading.Draft()
    if system := _inner(draft, request.system, NESTING_MAX):
        draft.say("system", system)
    tool_loop = False
    draft.take(request.messages)
    for message in request.messages or ():
        tool_loop = _add(draft, message)
    draft.declare(request.tools)
    output = reading.optional(request.output_config, _OUTPUT_CONFIG) or _OutputConfig()
    in_template, template_effort = reading.template_switch(request.chat_template_kwargs)
    # vLLM reads `thinking` after the effort, so switching it off wins.
    off = reading.type_of(request.thinking) == "disabled"
    return draft.view(
        Api.MESSAGES,
        request.model,
        stream=reading.flag(request.stream),
        tool_loop=tool_loop,
        json_mode=reading.asks_for_json(output.format),
        max_output_tokens=reading.positive(request.max_tokens),
        effort="none" if off else reading.effort_of(output.effort) or template_effort,
        reasoning_set=in_template or reading.given(request.thinking) or reading.given(output.effort),
        reasoning_paths=reading.switch_paths(
            request.chat_template_kwargs,
            {("thinking",): request.thinking, ("output_config", "effort"): output.effort},
        ),
    )


def _add(draft: reading.Draft, message: _Message) -> bool:
    """Add a message's turns; returns whether it brings a tool's result.

    Results come before the text they are sent with, as vLLM orders them for the template.
    """
    role = reading.role_of(message.role)
    if not isinstance(message.content, list):
        draft.say(role, message.content or "")
        return False
    results = [block for block in message.content if block.type == "tool_result"]
    for block in results:
        draft.say("tool", _inner(draft, block.content, NESTING_MAX - 1))
    text = _text(draft, message.content)
    if text or not results:
        draft.say(role, text)
    return bool(results)


def _text(draft: reading.Draft, content: str | Sequence[_Block] | None, nesting: int = NESTING_MAX) -> str:
    """The text of content blocks, tool results left out; media are counted."""
    if content is None or isinstance(content, str):
        return content or ""
    draft.take(content)
    texts = []
    for block in content:
        match block.type:
            case "text":
                texts.append(block.text or "")
            case "image":
                draft.images += 1
            case "document":
                texts.append(_document(draft, block.source, nesting - 1))
            case "search_result":
                texts.append(_inner(draft, block.content, nesting - 1))
            case "tool_use" | "server_tool_use":
                draft.count(block.input)
    return "\n".join(text for text in texts if text)


def _inner(draft: reading.Draft, raw: Raw, nesting: int) -> str:
    """The text of blocks within a block."""
    return _text(draft, reading.optional(raw, _BLOCKS), nesting) if nesting > 0 else ""


def _document(draft: reading.Draft, raw: Raw, nesting: int) -> str:
    """The text of a document; one that is not text (a PDF, a URL, a file) counts as an image."""
    source = reading.optional(raw, _SOURCE) or _Source()
    if source.type == "text":
        return reading.string(source.data)
    if source.type == "content":
        return _inner(draft, source.content, nesting)
    draft.images += 1
    return ""

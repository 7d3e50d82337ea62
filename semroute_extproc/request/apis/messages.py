"""`POST /v1/messages`: Anthropic's messages API."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis.reading import (
    ABSENT,
    Body,
    Draft,
    asks_for_json,
    inner,
    optional,
    positive,
    string,
)
from semroute_extproc.request.view import Api, RequestView

NESTING_MAX = 3
"""Levels of blocks within blocks that are read (a search result in a tool's result in a message). Each
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


_BLOCKS = Decoder(str | list[_Block])


class MessagesBody(Body):
    """A messages request."""

    messages: list[_Message] | None = None
    system: Raw = ABSENT
    output_config: Raw = ABSENT

    def view(self) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        if system := _blocks(draft, self.system, NESTING_MAX):
            draft.say("system", system)
        tool_loop = False
        draft.take(self.messages)
        for message in self.messages or ():
            tool_loop = _add(draft, message)
        draft.declare(self.tools)
        output = inner(self.output_config)
        reasoning = self.switches({("thinking",): self.thinking, ("output_config", "effort"): output.effort})
        if string(inner(self.thinking).type) == "disabled":
            reasoning["effort"] = "none"  # vLLM reads `thinking` after the effort, so switching it off wins
        return draft.view(
            Api.MESSAGES,
            self,
            tool_loop=tool_loop,
            json_mode=asks_for_json(output.format),
            max_output_tokens=positive(self.max_tokens),
            **reasoning,
        )


def _add(draft: Draft, message: _Message) -> bool:
    """Add a message's turns; returns whether it has a tool's result.

    Results come before the text that they are sent with, as vLLM orders them for the template.
    """
    blocks = message.content if isinstance(message.content, list) else ()
    results = [block for block in blocks if block.type == "tool_result"]
    for block in results:
        draft.say("tool", _blocks(draft, block.content, NESTING_MAX - 1))
    text = _text(draft, message.content, NESTING_MAX)
    if text or not results:
        draft.say(message.role, text)
    return bool(results)


def _text(draft: Draft, content: str | Sequence[_Block] | None, nesting: int) -> str:
    """The text of content blocks without tool results; media are counted."""
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
                texts.append(_blocks(draft, block.content, nesting - 1))
            case "tool_use" | "server_tool_use":
                draft.count(block.input)
    return "\n".join(filter(None, texts))


def _blocks(draft: Draft, raw: Raw, nesting: int) -> str:
    """The text of blocks within a block."""
    return _text(draft, optional(raw, _BLOCKS), nesting) if nesting > 0 else ""


def _document(draft: Draft, raw: Raw, nesting: int) -> str:
    """The text of a document; one that is not text (a PDF, a URL, a file) counts as an image."""
    source = inner(raw)
    match string(source.type):
        case "text":
            return string(source.data)
        case "content":
            return _blocks(draft, source.content, nesting)
    draft.images += 1
    return ""

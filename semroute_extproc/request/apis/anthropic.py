"""Anthropic's messages."""

from typing import Any

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.request.apis import reading
from semroute_extproc.request.apis.reading import ABSENT, Body, Draft, inner, string
from semroute_extproc.request.view import Api

NESTING_MAX = 3  # levels of nested blocks that are read; each level decodes its content again


class _Block(msgspec.Struct, gc=False):
    """One block of content: text, image, document, a tool's use or its result, thinking, …"""

    type: str | None = None
    text: str | None = None
    content: Raw = ABSENT
    input: Raw = ABSENT
    source: Raw = ABSENT
    is_error: Raw = ABSENT
    tool_use_id: Raw = ABSENT


_Blocks = str | list[_Block] | None
_BLOCKS = Decoder[Any](_Blocks)


class _Message(msgspec.Struct, gc=False):
    role: str | None = None
    content: _Blocks = None


class _MessagesBody(Body):
    messages: list[_Message] | None = None
    system: Raw = ABSENT
    output_config: Raw = ABSENT

    def read(self, draft: Draft) -> dict[str, Any]:
        if system := _inside(draft, self.system, NESTING_MAX):
            draft.say("system", system)
        tool_loop = False
        draft.take(self.messages or ())
        for message in self.messages or ():
            blocks = message.content if isinstance(message.content, list) else ()
            results = [block for block in blocks if block.type == "tool_result"]
            tool_loop = bool(results)
            for block in results:  # vLLM puts tool results before the text of the same message
                draft.answer(block.tool_use_id)
                text = _inside(draft, block.content, NESTING_MAX - 1)
                draft.say("tool", text, reading.flag(block.is_error) is True)
            text = _text(draft, message.content, NESTING_MAX)
            if text or not results:
                draft.say(message.role, text)
        draft.declare(self.tools)
        output = inner(self.output_config)
        reasoning = self.switches({("thinking",): self.thinking, ("output_config", "effort"): output.effort})
        if string(inner(self.thinking).type) == "disabled":
            reasoning["effort"] = "none"  # vLLM reads `thinking` after the effort, so switching it off wins
        return {
            "tool_loop": tool_loop,
            "json_mode": reading.asks_for_json(output.format),
            **self.limit(max_tokens=self.max_tokens),
            **reasoning,
        }


BODIES = {Api.MESSAGES: Decoder[Body](_MessagesBody)}


def _inside(draft: Draft, raw: Raw, nesting: int) -> str:
    """The text of blocks within a block."""
    return _text(draft, reading.optional(raw, _BLOCKS), nesting) if nesting > 0 else ""


def _text(draft: Draft, content: _Blocks, nesting: int) -> str:
    """The text of content without tool results; media are counted, documents that are not text too."""
    if content is None or isinstance(content, str):
        return content or ""
    draft.take(content)
    texts = []
    for block in content:
        match block.type:
            case "text":
                texts.append(block.text or "")
            case "image":
                draft.attach("image")
            case "document":
                source = inner(block.source)
                kind = string(source.type)
                if kind == "text":
                    texts.append(string(source.data))
                elif kind == "content":
                    texts.append(_inside(draft, source.content, nesting - 1))
                else:
                    draft.attach("document")  # a PDF, a URL, a file
            case "search_result":
                texts.append(_inside(draft, block.content, nesting - 1))
            case "tool_use" | "server_tool_use":
                draft.count(block.input)
    return "\n".join(filter(None, texts))

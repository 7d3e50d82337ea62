"""What the readers of the APIs share: tolerant fields, content parts and the view in the making.

Pure. Optional fields are kept as `msgspec.Raw`, an undecoded span of the body, and looked at on
their own, so that a wrong type in one of them cannot fail the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.reasoning import EFFORTS, KWARGS, TEMPLATE_SWITCHES
from semroute_extproc.request.view import Api, RequestView, Turn

T = TypeVar("T")

ELEMENTS_MAX = 16_384
"""Most messages, items and parts of one request together."""

ABSENT = Raw()
"""Default of an optional field."""

_NULL = Raw(b"null")
_BOOLEAN = Decoder(bool, strict=False)
_INTEGER = Decoder(int, strict=False)
_STRING = Decoder(str)
_ARRAY = Decoder(list[Raw])
_OBJECT = Decoder(dict[str, Raw])

_ROLES: Mapping[str | None, str] = {
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
}
"""Roles as sent to roles of a Turn; whatever else a template may know is the user's side."""

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_SILENT_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning_text", "tool_reference"})
"""Parts that carry neither text of the conversation nor media."""


class Part(msgspec.Struct, gc=False):
    """One part of a message's content; media are never decoded."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None


Content = str | list[str | Part] | None
"""Content of a message: a string, or parts, or nothing (an assistant that only called tools)."""

CONTENT = Decoder[Any](Content)


class Typed(msgspec.Struct, gc=False):
    """An object of which only `type` matters."""

    type: str | None = None


_TYPED = Decoder(Typed)


def optional(raw: Raw, decoder: Decoder[T]) -> T | None:
    """The value of an optional field; None if it was not given or is of the wrong type."""
    if not raw:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def given(raw: Raw) -> bool:
    """The field was sent and is not null."""
    return bool(raw) and raw != _NULL


def flag(raw: Raw) -> bool:
    """A boolean, as leniently as the upstream reads it; False if not given."""
    return optional(raw, _BOOLEAN) is True


def positive(raw: Raw) -> int | None:
    """A positive integer (`100`, `1e2`, `"100"`), or None."""
    number = optional(raw, _INTEGER)
    return number if number is not None and number > 0 else None


def string(raw: Raw) -> str:
    """A string; empty if not given."""
    return optional(raw, _STRING) or ""


def members(raw: Raw) -> Mapping[str, Raw]:
    """The members of an object; empty if not given."""
    return optional(raw, _OBJECT) or {}


def type_of(raw: Raw) -> str:
    """The `type` of an object; empty if not given."""
    typed = optional(raw, _TYPED)
    return (typed and typed.type) or ""


def role_of(role: str | None) -> str:
    """The role of a Turn for a role as sent."""
    return _ROLES.get(role, "user")


def effort_of(raw: Raw) -> str:
    """A reasoning effort that vLLM knows; empty for anything else."""
    effort = string(raw)
    return effort if effort in EFFORTS else ""


def template_switch(raw: Raw) -> tuple[bool, str]:
    """Whether `chat_template_kwargs` hold a reasoning switch, and the effort it amounts to.

    Templates name their switches as they like (`enable_thinking`, `thinking_mode`, …), so every
    key with "think" or "reason" in it counts as one.
    """
    if not given(raw):
        return False, ""
    switches = {
        name: value
        for name, value in members(raw).items()
        if given(value) and ("think" in name.lower() or "reason" in name.lower())
    }
    off = any(
        optional(switches.get(name, ABSENT), _BOOLEAN) is False for name in ("enable_thinking", "thinking")
    )
    return bool(switches), effort_of(switches.get("reasoning_effort", ABSENT)) or ("none" if off else "")


def switch_paths(
    kwargs: Raw, fields: Mapping[tuple[str, ...], Raw] | None = None
) -> tuple[tuple[str, ...], ...]:
    """Members with which the client switches reasoning: of `fields`, and of `chat_template_kwargs`."""
    found = [path for path, raw in (fields or {}).items() if given(raw)]
    if given(kwargs):
        inside = members(kwargs)
        found += [(KWARGS, name) for name in TEMPLATE_SWITCHES if given(inside.get(name, ABSENT))]
    return tuple(found)


def asks_for_json(response_format: Raw, structured_outputs: Raw = ABSENT) -> bool:
    """Whether a JSON object or schema was asked for, in OpenAI's way or in vLLM's own."""
    if type_of(response_format) in ("json_object", "json_schema"):
        return True
    outputs = members(structured_outputs)
    return given(outputs.get("json", ABSENT)) or flag(outputs.get("json_object", ABSENT))


@dataclass(slots=True)
class Draft:
    """A RequestView in the making: turns, and what is counted on the way."""

    turns: list[Turn] = field(default_factory=list)
    characters: int = 0
    images: int = 0
    tools: int = 0
    elements: int = 0

    def take(self, elements: Sized | None) -> None:
        """Count messages, items or parts before they are read; raises BadBody if they are too many."""
        self.elements += len(elements or ())
        if self.elements > ELEMENTS_MAX:
            raise BadBody(Cause.TOO_MANY_PARTS)

    def say(self, role: str, text: str) -> None:
        """Add a turn."""
        self.turns.append(Turn(role, text))
        self.characters += len(text)

    def read(self, content: Any) -> str:
        """The text of a message's Content, one line break between parts; media are counted.

        Every medium counts as an image (audio, video and files too): a pool that reads only text
        can serve none of them.
        """
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        self.take(content)
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
                continue
            text = part.refusal if part.text is None else part.text
            if part.type in _TEXT_PARTS or (part.type is None and text is not None):
                texts.append(text or "")
            elif part.type not in _SILENT_PARTS:
                self.images += 1
        return texts[0] if len(texts) == 1 else "\n".join(texts)

    def count(self, raw: Raw) -> None:
        """Count JSON that the template will print, such as a tool call's arguments."""
        if given(raw):
            self.characters += memoryview(raw).nbytes

    def declare(self, tools: Raw) -> None:
        """Count the tools of an array of declarations, and their length."""
        declared = optional(tools, _ARRAY)
        if declared:
            self.tools += len(declared)
            self.count(tools)

    def view(self, api: Api, model: str | None, **facts: Any) -> RequestView:
        """The finished view; raises BadBody if there is nothing in it to read."""
        readable = self.images > 0 or facts.get("stateful", False)
        if not readable and not any(turn.text and not turn.text.isspace() for turn in self.turns):
            raise BadBody(Cause.NO_TEXT)
        return RequestView(
            api,
            model or "",
            tuple(self.turns),
            images=self.images,
            tools=self.tools,
            characters=self.characters,
            **facts,
        )

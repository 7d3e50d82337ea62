"""What the APIs' bodies share: lenient fields, content parts and the draft of a RequestView. Pure.

An optional field is a `msgspec.Raw`, an undecoded span of the body, and is decoded on demand, so that a
value of the wrong type cannot fail the request.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause
from semroute_extproc.request.reasoning import KWARGS, TEMPLATE_SWITCHES
from semroute_extproc.request.view import Api, RequestView, Turn
from semroute_extproc.settings.base import EFFORTS

T = TypeVar("T")

ELEMENTS_MAX = 16_384  # messages, items and parts of one request together
METADATA_MAX, NUMBER_MAX = 16, 10**9  # members of `metadata`, as many as OpenAI allows; tokens
ABSENT = Raw()  # default of an optional field

_IMAGE = ("images", 1_000)  # of a megapixel, or a part of an unknown kind
_MEDIA = {"audio": ("audio", 750), "video": ("video", 6_000)}  # 30 s at 25 tokens a second, 10 s
_MEDIA |= dict.fromkeys(("document", "file"), ("files", 3_000))  # of four pages
"""Maps a word in the type of a part to a member of RequestView and the likely tokens."""

_MODES = {"disabled": False, "enabled": True, "adaptive": True}  # of `thinking` and `thinking_mode`
_NULL = Raw(b"null")
_INTEGER = Decoder(int, strict=False)
_STRING = Decoder(str)
_OBJECT = Decoder(dict[str, Raw])

_ROLES: dict[str | None, str] = {"system": "system", "developer": "system", "assistant": "assistant"}
_ROLES |= dict.fromkeys(("tool", "function", "ipython", "observation"), "tool")
"""Roles in the body to roles of a Turn; every other role counts as the user's."""

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})
_NATIVE_ID = re.compile("[A-Za-z0-9]{9}")  # of a tool call: the only form that Mistral's templates accept
_SILENT_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning_text", "tool_reference"})


class Inner(msgspec.Struct, gc=False):
    """Members of objects within the body."""

    type: Raw = ABSENT
    effort: Raw = ABSENT
    enabled: Raw = ABSENT
    budget_tokens: Raw = ABSENT
    format: Raw = ABSENT
    data: Raw = ABSENT
    content: Raw = ABSENT
    json: Raw = ABSENT
    json_object: Raw = ABSENT
    id: Raw = ABSENT


_TOOLS = Decoder(list[Inner])
_INNER = Decoder(Inner)
_NO_MEMBERS = Inner()


class Part(msgspec.Struct, gc=False):
    """One part of a message's content; media are never decoded."""

    type: str | None = None
    text: str | None = None
    refusal: str | None = None


Content = str | list[str | Part] | None  # of a message; None: an assistant that only called tools
CONTENT = Decoder[Any](Content)


def optional(raw: Raw, decoder: Decoder[T]) -> T | None:
    """The value of an optional field; None if it was not given or is of the wrong type."""
    try:
        return decoder.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


flag = partial(optional, decoder=Decoder(bool, strict=False))  # as lenient as the upstream; None if absent


def given(raw: Raw) -> bool:
    """The field was sent and is not null."""
    return bool(raw) and raw != _NULL


def positive(raw: Raw) -> int | None:
    """A positive integer (`100`, `1e2`, `"100"`), or None."""
    number = optional(raw, _INTEGER)
    return min(number, NUMBER_MAX) if number is not None and number > 0 else None


def string(raw: Raw) -> str:
    """A string; empty if not given."""
    return optional(raw, _STRING) or ""


def inner(raw: Raw) -> Inner:
    """The members of an object within the body; all ABSENT if it was not given."""
    return optional(raw, _INNER) or _NO_MEMBERS


def asks_for_json(response_format: Raw, structured_outputs: Raw = ABSENT) -> bool:
    """Whether a JSON object or schema was requested, by OpenAI's fields or vLLM's."""
    if string(inner(response_format).type) in ("json_object", "json_schema"):
        return True
    outputs = inner(structured_outputs)
    return given(outputs.json) or flag(outputs.json_object) is True


@dataclass(slots=True)
class Draft:
    """The draft of a RequestView."""

    turns: list[Turn] = field(default_factory=list)
    printed: list[bytes] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # by member of a RequestView
    foreign: bool = False
    elements: int = 0

    def take(self, elements: Sized) -> None:
        """Count messages, items or parts before they are read; raises BadBody if they are too many."""
        self.elements += len(elements)
        if self.elements > ELEMENTS_MAX:
            raise BadBody(Cause.TOO_MANY_PARTS)

    def say(self, role: str | None, text: str, failed: bool = False) -> None:
        """Add a turn; `role` is as sent."""
        self.turns.append(Turn(_ROLES.get(role, "user"), text, failed))
        self.counts["characters"] += len(text)

    def attach(self, kind: str | None) -> None:
        """Count a part that is not text; one of an unknown kind counts as an image."""
        name, tokens = next((each for word, each in _MEDIA.items() if word in (kind or "")), _IMAGE)
        self.counts[name] += 1
        self.counts["media_tokens"] += tokens

    def answer(self, call_id: Raw) -> None:
        """Note the ID of the tool call that a tool's result answers."""
        if given(call_id):
            self.foreign = self.foreign or not _NATIVE_ID.fullmatch(string(call_id))

    def read(self, content: Any) -> str:
        """The text of a message's Content; media are counted."""
        if content is None or isinstance(content, str):
            return content or ""
        self.take(content)
        texts = []
        for part in content:
            if isinstance(part, str):
                texts.append(part)
                continue
            text = part.refusal if part.text is None else part.text
            if part.type in _TEXT_PARTS or (part.type is None and text is not None):
                texts.append(text or "")
            elif part.type not in _SILENT_PARTS:  # these hold neither conversation text nor media
                self.attach(part.type)
        return "\n".join(texts)

    def count(self, raw: Raw) -> None:
        """Count the length of JSON that the chat template prints, such as a tool call's arguments."""
        if given(raw):
            self.printed.append(bytes(raw))
            self.counts["characters"] += len(raw)

    def declare(self, tools: Raw) -> None:
        """Count the tools of an array of declarations, and their length."""
        if declared := optional(tools, _TOOLS):
            self.counts["tools"] += len(declared)
            self.count(tools)


class Body(msgspec.Struct, gc=False):
    """The members that several APIs' bodies share."""

    model: str | None = None
    stream: Raw = ABSENT
    tools: Raw = ABSENT
    response_format: Raw = ABSENT
    structured_outputs: Raw = ABSENT
    max_tokens: Raw = ABSENT
    reasoning: Raw = ABSENT
    thinking: Raw = ABSENT
    chat_template_kwargs: Raw = ABSENT
    user: Raw = ABSENT
    truncate_prompt_tokens: Raw = ABSENT
    truncation: Raw = ABSENT
    prompt_cache_key: Raw = ABSENT
    conversation: Raw = ABSENT
    previous_response_id: Raw = ABSENT
    request_id: Raw = ABSENT
    metadata: Raw = ABSENT

    def read(self, draft: Draft) -> dict[str, Any]:
        """Fill the draft; returns the other facts of an API. Raises msgspec's errors and BadBody."""
        raise NotImplementedError

    def view(self, api: Api) -> RequestView:
        """The facts of the request."""
        draft = Draft()
        facts = self.read(draft)
        facts |= {**draft.counts, "printed": tuple(draft.printed), "foreign": draft.foreign}
        facts["stream"] = flag(self.stream) is True
        limit = optional(self.truncate_prompt_tokens, _INTEGER)
        if limit == -1 or string(self.truncation) == "auto":
            limit = 0
        facts["prompt_limit"] = None if limit is None or limit < 0 else limit
        pairs = list((optional(self.metadata, _OBJECT) or {}).items())[:METADATA_MAX]
        metadata = {key: text for key, raw in pairs if (text := string(raw))}
        facts |= {"metadata": metadata, "ids": self.ids(metadata)}
        facts["user"] = string(self.user) or metadata.get("user_id", "")
        return RequestView(api, self.model or "", tuple(draft.turns), **facts)

    def ids(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The names that the client gave the conversation, by the member's path; empty ones are left out."""
        found = {"prompt_cache_key": string(self.prompt_cache_key)}
        found["conversation"] = string(self.conversation) or string(inner(self.conversation).id)
        found["previous_response_id"] = string(self.previous_response_id)
        found["request_id"] = string(self.request_id)
        found |= {f"metadata.{name}": value for name, value in metadata.items()}
        return {path: name for path, name in found.items() if name}

    def limit(self, **members: Raw) -> dict[str, Any]:
        """The facts of the first member that is a positive number: the most tokens of the answer."""
        found = ((name, positive(raw)) for name, raw in members.items())
        name, most = next(((name, most) for name, most in found if most), ("", None))
        return {"output_member": name, "max_output_tokens": most}

    def switches(self, fields: Mapping[tuple[str, ...], Raw], other: bool = False) -> dict[str, Any]:
        """The facts `effort`, `reasoning_set` and `reasoning_paths` of a RequestView.

        `fields` are the members of the body that control reasoning; the last one is the effort. `other` is
        true if the client set a switch that a policy cannot replace. Switches of templates have no standard
        names, so every key of `chat_template_kwargs` that contains "think" or "reason" counts as one.
        """
        paths = [path for path, raw in fields.items() if given(raw)]
        *_, field = fields.values()
        effort = string(field)
        flags: list[bool | None] = []
        if given(self.chat_template_kwargs):
            arguments = optional(self.chat_template_kwargs, _OBJECT) or {}
            switches = {name: raw for name, raw in arguments.items() if given(raw)}
            other = other or any("think" in name or "reason" in name for name in map(str.lower, switches))
            paths += [(KWARGS, name) for name in TEMPLATE_SWITCHES if name in switches]
            if effort not in EFFORTS:  # vLLM prefers a field to the template argument (build_chat_params)
                effort = string(switches.get("reasoning_effort", ABSENT))
            flags += [flag(switches.get(key, ABSENT)) for key in ("enable_thinking", "thinking")]
            flags.append(_MODES.get(string(switches.get("thinking_mode", ABSENT))))
        thinking, asked = inner(self.thinking), inner(self.reasoning)
        if effort not in EFFORTS:
            flags += [_MODES.get(string(thinking.type)), flag(asked.enabled)]
            effort = string(asked.effort)
        if effort not in EFFORTS:
            effort = "none" if False in flags else "medium" if True in flags else ""
        chosen = other or bool(paths) or bool(effort)
        found = {"effort": effort, "reasoning_set": chosen, "reasoning_paths": tuple(paths)}
        return {**found, "thinking_tokens": positive(thinking.budget_tokens)}

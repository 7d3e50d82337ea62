"""The tokens of a request and its answer, as the answers of all APIs state them. Pure.

Envoy's filter `accounting` keeps little of an answer: its first and its last `usage` object and its finish
reason. It cannot decompress, so it keeps a compressed answer whole, and `parts_of` finds the same in it.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from semroute_extproc.request.view import Api

TOKENS_MAX = 10**9  # a larger count is not believed
HEAD_BYTES, TAIL_BYTES = 4_096, 16_384  # Of an answer: for its first `usage`, its last and its finish reason.

LEADING_EVENTS = {Api.CHAT_COMPLETIONS: 1, Api.RESPONSES: 4, Api.MESSAGES: 2}  # Before the first token.

FINISHES: Mapping[str, str] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "incomplete", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "refusal"), "content_filter"),
    **dict.fromkeys(("error", "failed", "abort", "cancelled", "repetition"), "error"),
    "": "unknown",
}
"""Finish reason of any API to the one of OpenAI's chat completions; others are `other`."""

_FIRST = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_LAST = re.compile(rb'.*"usage"\s*:\s*(\{.*)', re.DOTALL)
_FINISH_KEYS = (b"finish_reason", b"stop_reason", b"status")
_FINISH = [re.compile(rb'.*"%b"\s*:\s*"(\w+)"' % key, re.DOTALL) for key in _FINISH_KEYS]

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)] | None


class Usage(msgspec.Struct, frozen=True):
    """The tokens of a request and its answer."""

    input: int = 0  # of the prompt, cached ones included
    output: int = 0  # of the answer, reasoning included
    cached: int = 0  # of `input`, read from the pool's prefix cache
    reasoning: int = 0  # of `output`
    estimated: bool = False  # not stated: `output` is a number of events, `input` may be missing


class Parts(msgspec.Struct, frozen=True):
    """What is kept of an answer."""

    opening: bytes = b""  # the first `usage` object of a stream
    closing: bytes = b""  # from the last `usage` object to the end
    finish: str = ""
    events: int = 0  # of a stream


class _Details(msgspec.Struct):
    cached_tokens: _Tokens = None
    reasoning_tokens: _Tokens = None


class _Counts(msgspec.Struct):
    """`usage` in OpenAI's older and newer spelling, and in Anthropic's."""

    prompt_tokens: _Tokens = None
    input_tokens: _Tokens = None
    completion_tokens: _Tokens = None
    output_tokens: _Tokens = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cache_read_input_tokens: _Tokens = None
    cache_creation_input_tokens: _Tokens = None


class _Holder(msgspec.Struct):
    usage: _Counts | None = None
    inner: "_Holder | None" = None


class _Streaming(msgspec.Struct):
    stream: Any = None
    stream_options: Any = None


_START, _INNER = b"{", b'{"inner":{'  # Before a usage; the second one in events of the responses API.
_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
"""What only the first event of a message may state."""
_decode = msgspec.json.Decoder(_Holder).decode
_streaming = msgspec.json.Decoder(_Streaming).decode


def asks_for_usage(api: Api, body: bytes) -> bool:
    """Whether to set `stream_options.include_usage`: a stream of OpenAI's older APIs that leaves it open."""
    if api not in (Api.CHAT_COMPLETIONS, Api.COMPLETIONS):
        return False
    try:
        asked = _streaming(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    options = asked.stream_options if isinstance(asked.stream_options, dict) else {}
    return asked.stream is True and "include_usage" not in options


def parts_of(body: bytes, stream: bool) -> Parts:
    """What the filter would keep of an answer."""
    first, tail = _FIRST.search(body[:HEAD_BYTES]) if stream else None, body[-TAIL_BYTES:]
    last = _LAST.match(tail) or _LAST.match(body[max(body.rfind(b'"usage"'), 0) :])
    ends = filter(None, (each.match(tail) for each in _FINISH))
    finish = next((end[1].decode() for end in ends), "")
    events = body.startswith(b"data:") + body.count(b"\ndata:") if stream else 0
    return Parts(first[1] if first else b"", last[1] if last else b"", finish, events)


def usage_of(parts: Parts, api: Api | None, ended: bool = True, prompt_tokens: int = 0) -> Usage | None:
    """The tokens of an answer; None if it does not state them. Those of a stream are estimated then.

    `ended` is whether it is complete; `prompt_tokens` is an estimate of the prompt's tokens.
    """
    line, complete, _ = parts.closing.partition(b"\n")
    if not parts.events:
        line, complete = parts.closing, b"\n"
    inner = api is Api.RESPONSES and parts.events
    last = _counts(line, _INNER if inner else _START) if complete else None
    found = {**(last or {})}
    if api is Api.MESSAGES:  # Its first event may state counts that its last one lacks.
        first = _counts(parts.opening + b"}") or {}
        found = {**{key: first[key] for key in _INPUT if key in first}, **found}
    cached, created = found.get("cache_read_input_tokens", 0), found.get("cache_creation_input_tokens", 0)
    given = found.get("prompt_tokens", found.get("input_tokens", 0) + cached + created)
    made, reasoning = found.get("completion_tokens", found.get("output_tokens", 0)), 0
    for side in ("prompt", "input", "completion", "output"):
        if (details := found.get(f"{side}_tokens_details")) is not None:
            cached += details.cached_tokens or 0
            reasoning += details.reasoning_tokens or 0
    if last is None:
        # The last event of a complete stream is its end.
        made = max(0, parts.events - LEADING_EVENTS.get(api or Api.OTHER, 0) - ended)
        if not made:
            return None
        given = given or prompt_tokens
    return Usage(given, made, min(cached, given), min(reasoning, made), last is None)


def _counts(text: bytes, start: bytes = _START) -> dict[str, Any] | None:
    """The counts that are present, if the text after `"usage":` ends the answer or an event.

    The model cannot forge them: its text escapes quotes, and a tool's arguments are nested deeper. Nor can a
    client, whose tools are repeated before the usage and nested deeper, too.
    """
    try:
        held = _decode(start + b'"usage":' + text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    counts = held.usage or (held.inner and held.inner.usage)
    if counts is None:
        return None
    given = msgspec.structs.asdict(counts)
    return {key: value for key, value in given.items() if value is not None} or None

"""Answers of every API, as servers write them, with what they say about tokens."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import brotli
import zstandard

from semroute_extproc.request.usage import Usage
from semroute_extproc.request.view import Api

APIS = (Api.CHAT_COMPLETIONS, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES)
USAGE = Usage(input=120, output=7, cached=100, reasoning=3)
WITHOUT_REASONING = Usage(input=120, output=7, cached=100)
"""Anthropic's API does not say how many tokens were reasoning."""

ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "br": partial(brotli.compress, quality=1),
}

_OPENAI = {
    "prompt_tokens": 120,
    "total_tokens": 127,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": None},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
_RESPONSES = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 100, "input_tokens_per_turn": []},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3, "tool_output_tokens": 0},
    "total_tokens": 127,
}
_MESSAGES = {"input_tokens": 15, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 100}


def usage(api: Api) -> Usage:
    return WITHOUT_REASONING if api is Api.MESSAGES else USAGE


def whole(api: Api, text: str = "Lima is the capital.") -> bytes:
    """An answer in one piece; what vLLM writes after the usage is there too."""
    head = {"id": "a-1", "created": 1, "model": "m"}
    match api:
        case Api.MESSAGES:
            tool = {"type": "tool_use", "id": "t", "name": "pay", "input": {"usage": {"input_tokens": 10**8}}}
            content = [{"type": "text", "text": text}, tool]
            end = {
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {**_MESSAGES, "output_tokens": 7},
            }
            return json.dumps({**head, "type": "message", "content": content, **end}).encode()
        case Api.RESPONSES:
            item = {
                "type": "message",
                "status": "completed",
                "content": [{"type": "output_text", "text": text}],
            }
            more = {"status": "completed", "text": None, "usage": _RESPONSES, "user": None}
            return json.dumps({**head, "object": "response", "output": [item], **more}).encode()
        case Api.CHAT_COMPLETIONS:
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        case _:
            choice = {"text": text}
    choice = {"index": 0, **choice, "finish_reason": "stop", "stop_reason": None}
    more = {"usage": _OPENAI, "prompt_logprobs": None, "kv_transfer_params": None}
    return json.dumps({**head, "choices": [choice], **more}).encode()


def stream(api: Api, pieces: tuple[str, ...] = ("Lima", " is", " it"), stated: bool = True) -> list[bytes]:
    """The events of an answer; those of OpenAI's older APIs leave out the usage if it is not `stated`."""
    if api is Api.MESSAGES:
        start = {"id": "a-1", "content": [], "usage": {**_MESSAGES, "output_tokens": 0}}
        events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": start})]
        events += [("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})]
        events += [
            ("content_block_delta", {"delta": {"type": "text_delta", "text": each}}) for each in pieces
        ]
        events += [("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}})]
        events += [("message_stop", {})]
        return [_event(kind, members) for kind, members in events]
    if api is Api.RESPONSES:
        response = json.loads(whole(api, "".join(pieces)))
        begun = {"response": {**response, "status": "in_progress", "output": [], "usage": None}}
        events = [(f"response.{kind}", begun) for kind in ("created", "in_progress", "output_item.added")]
        events += [("response.content_part.added", {"part": {}})]
        events += [("response.output_text.delta", {"delta": each}) for each in pieces]
        events += [("response.completed", {"response": response})]
        return [_event(kind, members) for kind, members in events]
    chat = api is Api.CHAT_COMPLETIONS
    chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}] if chat else []
    texts = [{"delta": {"content": each}} if chat else {"text": each} for each in pieces]
    ends = [{"finish_reason": None}] * (len(texts) - 1) + [{"finish_reason": "stop"}]
    chunks += [{"choices": [{**text, **end}], "usage": None} for text, end in zip(texts, ends, strict=True)]
    chunks += [{"choices": [], "usage": _OPENAI}] * stated
    return [f"data: {json.dumps(each)}\n\n".encode() for each in chunks] + [b"data: [DONE]\n\n"]


def _event(kind: str, members: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()

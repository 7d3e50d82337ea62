"""What vLLM answers, as data: bodies and server-sent events of the simulated pool.

Pure. Shapes follow vLLM 0.32 (OpenAI's chat completions, completions, responses and embeddings,
Anthropic's messages), reduced to the members clients read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semroute_extproc.request.view import Api

Json = dict[str, Any]
"""A JSON object."""

CHARACTERS_A_TOKEN = 4
"""A rule of thumb for English, used where a real server would run its tokenizer."""

IMAGE_TOKENS = 576
"""What an image costs, about: a 24 x 24 grid of patches."""

EMBEDDING_DIMENSIONS = 32
"""Length of the simulated embeddings."""

ANSWER_TOKENS_MAX = 2_048
"""No simulated answer is longer, whatever the client allows."""

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Asked:
    """The members of a request that shape its answer."""

    api: Api
    stream: bool
    include_usage: bool
    prompt_tokens: int
    max_tokens: int | None
    seed: int
    """Derived from the prompt, so that the same prompt gets an answer of the same length."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, before it takes an API's shape."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    pieces: Sequence[str]
    """Its tokens, each with the space before it."""
    truncated: bool
    """It ended because of the client's limit."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


def read(api: Api, body: Json) -> Asked:
    """What `body` asks for, as far as the simulation cares."""
    prompt = {key: body[key] for key in ("messages", "prompt", "input", "system", "tools") if key in body}
    text, images = _measure(prompt)
    options = body.get("stream_options")
    limit = next((body[key] for key in _LIMITS if isinstance(body.get(key), int)), None)
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return Asked(
        api=api,
        stream=body.get("stream") is True and api is not Api.EMBEDDINGS,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_tokens=max(1, text // CHARACTERS_A_TOKEN) + images * IMAGE_TOKENS,
        max_tokens=limit,
        seed=int.from_bytes(digest[:4], "big"),
    )


def _measure(value: Any) -> tuple[int, int]:
    """Characters of text and number of images anywhere in `value`."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, dict):
        if value.get("type") in ("image_url", "image", "input_image"):
            return 0, 1
        value = list(value.values())
    if isinstance(value, list):
        parts = [_measure(item) for item in value]
        return sum(text for text, _ in parts), sum(images for _, images in parts)
    return 0, 0


def pieces(asked: Asked, pool: str) -> tuple[list[str], bool]:
    """The tokens of an answer to `asked`, and whether the client's limit cut it short."""
    wanted = 40 + asked.seed % 160
    allowed = min(ANSWER_TOKENS_MAX, asked.max_tokens if asked.max_tokens is not None else wanted)
    sentence = f"This text comes from the simulated {pool} pool and stands for an answer. ".split(" ")[:-1]
    words = [sentence[index % len(sentence)] for index in range(min(wanted, allowed))]
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)], allowed < wanted


def usage(api: Api, answer: Answer) -> Json:
    """Token counts under the names of `api`."""
    given, made = answer.prompt_tokens, len(answer.pieces)
    match api:
        case Api.MESSAGES:
            return {"input_tokens": given, "output_tokens": made}
        case Api.RESPONSES:
            return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        case Api.EMBEDDINGS:
            return {"prompt_tokens": given, "total_tokens": given}
        case _:
            return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def body(api: Api, answer: Answer) -> Json:
    """The answer in one piece."""
    counts = usage(api, answer)
    finish = "length" if answer.truncated else "stop"
    match api:
        case Api.CHAT_COMPLETIONS:
            message = {"role": "assistant", "content": answer.text}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            return {**_head(answer, "chat.completion"), "choices": [choice], "usage": counts}
        case Api.COMPLETIONS:
            choice = {"index": 0, "text": answer.text, "logprobs": None, "finish_reason": finish}
            return {**_head(answer, "text_completion"), "choices": [choice], "usage": counts}
        case Api.RESPONSES:
            return _response(answer, "incomplete" if answer.truncated else "completed", [_item(answer)])
        case Api.MESSAGES:
            return {**_message(answer), "content": [{"type": "text", "text": answer.text}], "usage": counts}
        case Api.EMBEDDINGS:
            digest = hashlib.sha256(answer.id.encode()).digest()[:EMBEDDING_DIMENSIONS]
            data = [{"object": "embedding", "index": 0, "embedding": [byte / 255 - 0.5 for byte in digest]}]
            return {"object": "list", "model": answer.model, "data": data, "usage": counts}


def events(api: Api, answer: Answer, include_usage: bool) -> Iterator[tuple[bytes, bool]]:
    """The answer as server-sent events: each with whether it carries a token, hence takes time."""
    match api:
        case Api.CHAT_COMPLETIONS | Api.COMPLETIONS:
            yield from _openai_events(api, answer, include_usage)
        case Api.RESPONSES:
            yield from _responses_events(answer)
        case Api.MESSAGES:
            yield from _messages_events(answer)
        case Api.EMBEDDINGS:
            raise ValueError("embeddings are not streamed")


def _openai_events(api: Api, answer: Answer, include_usage: bool) -> Iterator[tuple[bytes, bool]]:
    chat = api is Api.CHAT_COMPLETIONS
    head = _head(answer, "chat.completion.chunk" if chat else "text_completion")

    def chunk(content: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return _event({**head, "choices": [choice]})

    if chat:
        yield chunk({"delta": {"role": "assistant", "content": ""}}), False
    for piece in answer.pieces:
        yield chunk({"delta": {"content": piece}} if chat else {"text": piece}), True
    yield chunk({"delta": {}} if chat else {"text": ""}, "length" if answer.truncated else "stop"), False
    if include_usage:
        yield _event({**head, "choices": [], "usage": usage(api, answer)}), False
    yield b"data: [DONE]\n\n", False


def _responses_events(answer: Answer) -> Iterator[tuple[bytes, bool]]:
    def event(kind: str, **members: Any) -> bytes:
        return _event({"type": f"response.{kind}", **members}, f"response.{kind}")

    item = f"msg_{answer.id}"
    part = {"type": "output_text", "text": answer.text, "annotations": []}
    place: Json = {"item_id": item, "output_index": 0, "content_index": 0}
    begun = _response(answer, "in_progress", [])
    yield event("created", response=begun), False
    yield event("in_progress", response=begun), False
    yield event("output_item.added", output_index=0, item={**_item(answer), "content": []}), False
    yield event("content_part.added", **place, part={**part, "text": ""}), False
    for piece in answer.pieces:
        yield event("output_text.delta", **place, delta=piece), True
    yield event("output_text.done", **place, text=answer.text), False
    yield event("content_part.done", **place, part=part), False
    yield event("output_item.done", output_index=0, item=_item(answer)), False
    status = "incomplete" if answer.truncated else "completed"
    yield event("completed", response=_response(answer, status, [_item(answer)])), False


def _messages_events(answer: Answer) -> Iterator[tuple[bytes, bool]]:
    def event(kind: str, **members: Any) -> bytes:
        return _event({"type": kind, **members}, kind)

    counts = usage(Api.MESSAGES, answer)
    begun = {**_message(answer), "content": [], "stop_reason": None, "usage": {**counts, "output_tokens": 0}}
    yield event("message_start", message=begun), False
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""}), False
    for piece in answer.pieces:
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece}), True
    yield event("content_block_stop", index=0), False
    delta = {"stop_reason": _message(answer)["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=delta, usage=counts), False
    yield event("message_stop"), False


def _event(data: Mapping[str, Any], name: str = "") -> bytes:
    prefix = f"event: {name}\n" if name else ""
    return f"{prefix}data: {json.dumps(data)}\n\n".encode()


def _head(answer: Answer, kind: str) -> Json:
    return {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}


def _item(answer: Answer) -> Json:
    content = [{"type": "output_text", "text": answer.text, "annotations": []}]
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "content": content}


def _message(answer: Answer) -> Json:
    stop = "max_tokens" if answer.truncated else "end_turn"
    head = {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model}
    return {**head, "stop_reason": stop, "stop_sequence": None}


def _response(answer: Answer, status: str, output: list[Json]) -> Json:
    done = status != "in_progress"
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": answer.model,
        "output": output,
        "usage": usage(Api.RESPONSES, answer) if done else None,
    }

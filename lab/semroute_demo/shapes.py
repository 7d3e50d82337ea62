"""vLLM's answers as data: bodies and server-sent events of the simulated pool.

Pure. Shapes follow vLLM 0.32 (OpenAI's chat completions, completions, responses and embeddings,
Anthropic's messages), reduced to the members that clients read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semroute_extproc.request.view import Api

Json = dict[str, Any]
"""A JSON object."""

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English, in place of a tokenizer."""

IMAGE_TOKENS = 576
"""The approximate cost of an image: a 24 x 24 grid of patches."""

EMBEDDING_DIMENSIONS = 32
"""Length of the simulated embeddings."""

ANSWER_TOKENS_MAX = 2_048
"""No simulated answer is longer, whatever the client allows."""


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

    @property
    def finish(self) -> str:
        """The finish reason in OpenAI's words."""
        return "length" if self.truncated else "stop"


def read(api: Api, body: Json) -> Asked:
    """The parts of `body` that the simulation uses."""
    prompt = {key: body[key] for key in ("messages", "prompt", "input", "system", "tools") if key in body}
    text, images = _measure(prompt)
    options = body.get("stream_options")
    limits = (body.get(key) for key in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    return Asked(
        api=api,
        stream=body.get("stream") is True and api is not Api.EMBEDDINGS,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        prompt_tokens=max(1, text // CHARACTERS_PER_TOKEN) + images * IMAGE_TOKENS,
        max_tokens=next((limit for limit in limits if isinstance(limit, int)), None),
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
    parts = [_measure(item) for item in value] if isinstance(value, list) else []
    return sum(text for text, _ in parts), sum(images for _, images in parts)


def pieces(asked: Asked, pool: str) -> tuple[list[str], bool]:
    """The tokens of an answer to `asked`, and whether the client's limit cut it short."""
    wanted = 40 + asked.seed % 160
    allowed = min(ANSWER_TOKENS_MAX, asked.max_tokens if asked.max_tokens is not None else wanted)
    sentence = f"This text comes from the simulated {pool} pool and stands for an answer.".split(" ")
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
    match api:
        case Api.RESPONSES:
            return _response(answer, _status(answer), [_item(answer, [_part(answer.text)])])
        case Api.MESSAGES:
            return _message(answer, [{"type": "text", "text": answer.text}])
        case Api.EMBEDDINGS:
            digest = hashlib.sha256(answer.id.encode()).digest()[:EMBEDDING_DIMENSIONS]
            data = [{"object": "embedding", "index": 0, "embedding": [byte / 255 - 0.5 for byte in digest]}]
            return {"object": "list", "model": answer.model, "data": data, "usage": usage(api, answer)}
        case _:
            chat = api is Api.CHAT_COMPLETIONS
            kind = "chat.completion" if chat else "text_completion"
            content = {"message": {"role": "assistant", "content": answer.text}}
            made = _completion(answer, kind, content if chat else {"text": answer.text}, answer.finish)
            return {**made, "usage": usage(api, answer)}


def events(api: Api, answer: Answer, include_usage: bool) -> Iterator[tuple[bytes, bool]]:
    """The answer as server-sent events: each with whether it carries a token and therefore takes time."""
    if api in (Api.RESPONSES, Api.MESSAGES):
        prefix = "response." if api is Api.RESPONSES else ""
        for kind, members in _response_events(answer) if prefix else _message_events(answer):
            data = json.dumps({"type": prefix + kind, **members})
            yield f"event: {prefix}{kind}\ndata: {data}\n\n".encode(), "delta" in kind and kind != "message_delta"
        return
    for chunk in _chunks(api, answer, include_usage):
        choices = chunk["choices"]
        timed = bool(choices) and bool(choices[0].get("text") or choices[0].get("delta", {}).get("content"))
        yield f"data: {json.dumps(chunk)}\n\n".encode(), timed
    yield b"data: [DONE]\n\n", False


def _chunks(api: Api, answer: Answer, include_usage: bool) -> Iterator[Json]:
    chat = api is Api.CHAT_COMPLETIONS
    kind = "chat.completion.chunk" if chat else "text_completion"
    if chat:
        yield _completion(answer, kind, {"delta": {"role": "assistant", "content": ""}})
    for piece in answer.pieces:
        yield _completion(answer, kind, {"delta": {"content": piece}} if chat else {"text": piece})
    last = _completion(answer, kind, {"delta": {}} if chat else {"text": ""}, answer.finish)
    yield last
    if include_usage:
        yield {**last, "choices": [], "usage": usage(api, answer)}


def _response_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    begun, part, item = _response(answer, "in_progress", []), _part(answer.text), _item(answer, [])
    place: Json = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield "created", {"response": begun}
    yield "in_progress", {"response": begun}
    yield "output_item.added", {"output_index": 0, "item": item}
    yield "content_part.added", {**place, "part": _part("")}
    for piece in answer.pieces:
        yield "output_text.delta", {**place, "delta": piece}
    yield "output_text.done", {**place, "text": answer.text}
    yield "content_part.done", {**place, "part": part}
    yield "output_item.done", {"output_index": 0, "item": _item(answer, [part])}
    yield "completed", {"response": body(Api.RESPONSES, answer)}


def _message_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    whole = _message(answer, [])
    counts, stop = whole["usage"], {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    yield "message_start", {"message": {**whole, "stop_reason": None, "usage": {**counts, "output_tokens": 0}}}
    yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
    for piece in answer.pieces:
        yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}}
    yield "content_block_stop", {"index": 0}
    yield "message_delta", {"delta": stop, "usage": counts}
    yield "message_stop", {}


def _completion(answer: Answer, kind: str, content: Json, finish: str | None = None) -> Json:
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
    head = {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}
    return {**head, "choices": [choice]}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _item(answer: Answer, content: list[Json]) -> Json:
    return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "content": content}


def _status(answer: Answer) -> str:
    return "incomplete" if answer.truncated else "completed"


def _message(answer: Answer, content: list[Json]) -> Json:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": "max_tokens" if answer.truncated else "end_turn",
        "stop_sequence": None,
        "usage": usage(Api.MESSAGES, answer),
    }


def _response(answer: Answer, status: str, output: list[Json]) -> Json:
    return {
        "id": answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": answer.model,
        "output": output,
        "usage": None if status == "in_progress" else usage(Api.RESPONSES, answer),
    }

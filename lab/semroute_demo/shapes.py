"""vLLM's answers as data: bodies and server-sent events of the simulated pool.

Pure. Shapes follow vLLM 0.32 (OpenAI's chat completions, completions, responses and embeddings,
Anthropic's messages), reduced to the members that clients read.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semroute_extproc.request.view import Api

Json = dict[str, Any]

CHARACTERS_PER_TOKEN = 4  # a rule of thumb for English, in place of a tokenizer
IMAGE_TOKENS = 576  # the approximate cost of an image: a 24 x 24 grid of patches
EMBEDDING_DIMENSIONS = 32
ANSWER_TOKENS_MAX = 2_048  # no simulated answer is longer, whatever the client allows

PROMPT = ("messages", "prompt", "input", "system", "tools")  # members of a request that hold its prompt
INSTANCE_DEPTH_MAX = 8  # of the objects in an answer that follows a schema
SIMPLE = {"string": "text", "integer": 1, "number": 0.5, "boolean": True, "null": None}  # by type
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")  # of its answer; the first set applies


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, before it takes an API's shape."""

    api: Api
    id: str
    model: str
    created: int
    stream: bool
    include_usage: bool
    prompt_tokens: int
    pieces: Sequence[str]  # its tokens, each with the space before it; of a call, those of its arguments
    truncated: bool  # it ended because of the client's limit
    tool: str = ""  # the tool that it calls


def answer(api: Api, request: Json, pool: str, model: str, name: str, created: int) -> Answer:
    """The answer to a request's body; its length depends on the prompt alone and on the client's limit."""
    prompt = {key: request[key] for key in PROMPT if key in request}
    text, images = _measure(prompt)
    tokens = max(1, text // CHARACTERS_PER_TOKEN) + images * IMAGE_TOKENS
    digest = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()
    wanted = 40 + int.from_bytes(digest[:4], "big") % 160
    allowed = next((limit for key in LIMITS if isinstance(limit := request.get(key), int)), wanted)
    embeds = api is Api.EMBEDDINGS
    count = 0 if embeds else min(wanted, allowed, ANSWER_TOKENS_MAX)
    words = f"This text comes from the simulated {pool} pool and stands for an answer.".split()
    pieces = [" " * (index > 0) + words[index % len(words)] for index in range(count)]
    tool, schema = ("", None) if embeds else _wanted(request)
    content = "" if schema is None else json.dumps(instance(schema))
    parts = [content[at : at + CHARACTERS_PER_TOKEN] for at in range(0, len(content), CHARACTERS_PER_TOKEN)]
    if parts and (allowed == wanted or len(parts) <= allowed):
        pieces, allowed = parts, wanted
    else:
        tool = ""  # a client that allows too few tokens gets text
    stream, options = request.get("stream") is True and not embeds, request.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    return Answer(api, name, model, created, stream, with_usage, tokens, pieces, allowed < wanted, tool)


def _wanted(request: Json) -> tuple[str, Any]:
    """The tool to call, if any, and the schema of its arguments or of the answer; None for plain text."""
    said = request.get("messages") or request.get("input")
    last = said[-1] if isinstance(said, list) and isinstance(said[-1], dict) else {}
    kinds = [last.get("role"), last.get("type")]
    content = last.get("content")
    kinds += (
        [part.get("type") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    )
    tools = [tool for tool in request.get("tools") or () if isinstance(tool, dict)]
    answered = not {"tool", "function_call_output", "tool_result"}.isdisjoint(kinds)
    if tools and not answered and request.get("tool_choice") != "none":
        called = tools[0].get("function") or tools[0]
        schema = called.get("parameters") or called.get("input_schema") or {}
        return str(called.get("name", "tool")), {"type": "object", **schema}
    form = request.get("response_format") or (request.get("text") or {}).get("format") or {}
    if form.get("type") == "json_object":
        return "", {"type": "object"}
    return "", (form.get("json_schema") or form).get("schema")


def instance(schema: Any, depth: int = 0) -> Any:
    """A small value of a JSON Schema: the first choice, and every property of an object."""
    schema = schema if isinstance(schema, dict) and depth < INSTANCE_DEPTH_MAX else {}
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance(schema[key][0], depth + 1)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {key: instance(each, depth + 1) for key, each in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items"), depth + 1)]
    return SIMPLE.get(kind, "text")


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


def usage(answer: Answer) -> Json:
    """Token counts under the names of the answer's API."""
    given, made = answer.prompt_tokens, len(answer.pieces)
    match answer.api:
        case Api.MESSAGES:
            return {"input_tokens": given, "output_tokens": made}
        case Api.RESPONSES:
            return {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        case Api.EMBEDDINGS:
            return {"prompt_tokens": given, "total_tokens": given}
        case _:
            return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}


def body(answer: Answer) -> Json:
    """The answer in one piece."""
    text = "".join(answer.pieces)
    match answer.api:
        case Api.CHAT_COMPLETIONS:
            said: Json = {"content": text}
            if answer.tool:
                said = {"content": None, "tool_calls": [_call(answer, text)]}
            message = {"message": {"role": "assistant", **said}}
            return _choice(answer, "chat.completion", message, last=True) | {"usage": usage(answer)}
        case Api.COMPLETIONS:
            whole = _choice(answer, "text_completion", {"text": text}, last=True)
            return whole | {"usage": usage(answer)}
        case Api.RESPONSES:
            content = [{"type": "output_text", "text": text, "annotations": []}]
            item = {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "content": content}
            if answer.tool:
                call = {"type": "function_call", "call_id": f"call_{answer.id}", "arguments": text}
                item = {"id": f"fc_{answer.id}", "name": answer.tool, **call}
            return _response(answer, "incomplete" if answer.truncated else "completed", [item])
        case Api.MESSAGES:
            return _message(answer, [{**_block(answer), **({} if answer.tool else {"text": text})}])
        case _:
            digest = hashlib.sha256(answer.id.encode()).digest()[:EMBEDDING_DIMENSIONS]
            data = [{"object": "embedding", "index": 0, "embedding": [byte / 255 - 0.5 for byte in digest]}]
            return {"object": "list", "model": answer.model, "data": data, "usage": usage(answer)}


def events(answer: Answer) -> Iterator[tuple[bytes, bool]]:
    """The answer as server-sent events: each with whether it carries a token and therefore takes time."""
    if answer.api not in (Api.RESPONSES, Api.MESSAGES):
        for chunk, timed in _chunks(answer):
            yield f"data: {json.dumps(chunk)}\n\n".encode(), timed
        yield b"data: [DONE]\n\n", False
        return
    for kind, members in (_response_events if answer.api is Api.RESPONSES else _message_events)(answer):
        data = json.dumps({"type": kind, **members})
        yield f"event: {kind}\ndata: {data}\n\n".encode(), "delta" in members and "usage" not in members


def _call(answer: Answer, arguments: str) -> Json:
    function = {"name": answer.tool, "arguments": arguments}
    return {"index": 0, "id": f"call_{answer.id}", "type": "function", "function": function}


def _block(answer: Answer) -> Json:
    """The one part of an answer of Anthropic's API, as it begins; a call has its input."""
    if not answer.tool:
        return {"type": "text", "text": ""}
    given = json.loads("".join(answer.pieces))
    return {"type": "tool_use", "id": f"toolu_{answer.id}", "name": answer.tool, "input": given}


def _chunks(answer: Answer) -> Iterator[tuple[Json, bool]]:
    chat = answer.api is Api.CHAT_COMPLETIONS
    kind = "chat.completion.chunk" if chat else "text_completion"
    if chat:
        yield _choice(answer, kind, {"delta": {"role": "assistant", "content": ""}}), False
    for number, piece in enumerate(answer.pieces):
        said: Json = {"content": piece}
        if answer.tool:
            call = {"index": 0, "function": {"arguments": piece}} if number else _call(answer, piece)
            said = {"tool_calls": [call]}
        yield _choice(answer, kind, {"delta": said} if chat else {"text": piece}), True
    last = _choice(answer, kind, {"delta": {}} if chat else {"text": ""}, last=True)
    yield last, False
    if answer.include_usage:
        yield {**last, "choices": [], "usage": usage(answer)}, False


def _response_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    whole = body(answer)
    item, begun = whole["output"][0], {"response": _response(answer, "in_progress", [])}
    if answer.tool:
        yield "response.created", begun
        place = {"output_index": 0, "item_id": item["id"]}
        yield "response.output_item.added", {"output_index": 0, "item": {**item, "arguments": ""}}
        for piece in answer.pieces:
            yield "response.function_call_arguments.delta", {**place, "delta": piece}
        done = {"arguments": item["arguments"], "name": answer.tool}
        yield "response.function_call_arguments.done", {**place, **done}
        yield "response.output_item.done", {"output_index": 0, "item": item}
        yield "response.completed", {"response": whole}
        return
    part = item["content"][0]
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    yield "response.created", begun
    yield "response.in_progress", begun
    yield "response.output_item.added", {"output_index": 0, "item": {**item, "content": []}}
    yield "response.content_part.added", {**place, "part": {**part, "text": ""}}
    for piece in answer.pieces:
        yield "response.output_text.delta", {**place, "delta": piece}
    yield "response.output_text.done", {**place, "text": part["text"]}
    yield "response.content_part.done", {**place, "part": part}
    yield "response.output_item.done", {"output_index": 0, "item": item}
    yield "response.completed", {"response": whole}


def _message_events(answer: Answer) -> Iterator[tuple[str, Json]]:
    whole = _message(answer, [])
    counts, stop = whole["usage"], {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    begun = {**whole, "stop_reason": None, "usage": {**counts, "output_tokens": 0}}
    yield "message_start", {"message": begun}
    block = {**_block(answer), **({"input": {}} if answer.tool else {})}
    yield "content_block_start", {"index": 0, "content_block": block}
    kind, member = ("input_json_delta", "partial_json") if answer.tool else ("text_delta", "text")
    for piece in answer.pieces:
        yield "content_block_delta", {"index": 0, "delta": {"type": kind, member: piece}}
    yield "content_block_stop", {"index": 0}
    yield "message_delta", {"delta": stop, "usage": counts}
    yield "message_stop", {}


def _choice(answer: Answer, kind: str, content: Json, last: bool = False) -> Json:
    reason = "tool_calls" if answer.tool else "length" if answer.truncated else "stop"
    finish = reason if last else None
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
    head = {"id": answer.id, "object": kind, "created": answer.created, "model": answer.model}
    return {**head, "choices": [choice]}


def _message(answer: Answer, content: list[Json]) -> Json:
    head = {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model}
    stop = "tool_use" if answer.tool else "max_tokens" if answer.truncated else "end_turn"
    end = {"stop_reason": stop, "stop_sequence": None, "usage": usage(answer)}
    return {**head, "content": content, **end}


def _response(answer: Answer, status: str, output: list[Json]) -> Json:
    head = {"id": answer.id, "object": "response", "created_at": answer.created, "status": status}
    cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
    counts = None if status == "in_progress" else usage(answer)
    return {**head, "incomplete_details": cut, "model": answer.model, "output": output, "usage": counts}

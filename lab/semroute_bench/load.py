"""Requests as Envoy sends them to an external processor."""

import base64
import json
import random
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.envoy._pb import external_processor_pb2 as pb

NAMED, ROUTED = "Qwen/Qwen3-8B", "auto"  # a model whose pool is known without a strategy, and a virtual one

PROMPT = (
    "A train leaves the station at nine in the morning at sixty miles an hour, and a second one follows "
    "an hour later at eighty. At what time does the second catch up with the first, how far from the "
    "station are they then, and how would the answer change if the first stopped for ten minutes?"
)
"""About sixty tokens, as a question people ask."""

LONG = " ".join(Path(__file__).with_name("long.txt").read_text().split())
"""More than four hundred tokens that do not repeat themselves."""

HEADERS = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":authority": "localhost:10000",
    ":scheme": "http",
    "content-type": "application/json",
    "user-agent": "semroute-bench",
    "accept": "*/*",
    "x-forwarded-proto": "http",
    "x-request-id": "7b1f4f0e-8c1c-4b52-9d8e-2d7d1b6f0c11",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """The two messages of a request, serialized."""

    headers: bytes
    body: bytes


def prompt_of(framer: Framer, tokens: int) -> str:
    """A text of `tokens` ids, [CLS] and [SEP] included, give or take one word."""
    words = LONG.split()

    def text(count: int) -> str:
        return " ".join(words[index % len(words)] for index in range(count))

    return text(bisect_left(range(2_000), tokens - 2, key=lambda count: framer.frame(text(count)).tokens))


def chat(model: str, text: str = PROMPT, **more: Any) -> bytes:
    """A chat completion whose answer is one token."""
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 1, **more}).encode()


def bodies(model: str) -> dict[str, bytes]:
    """Bodies of real traffic: a question, an agent's tools, a picture, a long document."""
    tool = {"type": "function", "function": {"name": "look_up", "description": PROMPT * 2, "parameters": {}}}
    picture = "data:image/png;base64," + base64.b64encode(random.Random(0).randbytes(1_050_000)).decode()
    parts = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": picture}}]
    return {
        "2 KB": chat(model, LONG),
        "42 KB, tools": chat(model, PROMPT, tools=[tool] * 58),
        "1.4 MB, image": chat(model, messages=[{"role": "user", "content": parts}]),
        "10 MB": chat(model, LONG * 5_200),
    }


def exchange(body: bytes) -> Exchange:
    """A request's messages in Envoy's order: headers, then the whole body."""
    first, second = pb.ProcessingRequest(), pb.ProcessingRequest()
    for key, value in {**HEADERS, "content-length": str(len(body))}.items():
        first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
    second.request_body.body, second.request_body.end_of_stream = body, True
    return Exchange(first.SerializeToString(), second.SerializeToString())

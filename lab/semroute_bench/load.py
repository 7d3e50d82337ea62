"""Requests as Envoy sends them, and a raw gRPC client that sends them."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import grpc.aio

from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

PROMPT = (
    "A train leaves the station at nine in the morning at sixty miles an hour, and a second one follows "
    "an hour later at eighty. At what time does the second catch up with the first, how far from the "
    "station are they then, and how would the answer change if the first stopped for ten minutes?"
)
"""About sixty tokens, as a question people ask."""

LONG = (
    f"{PROMPT} I am writing this up as a worksheet for a class of fourteen-year-olds, so please do not only "
    "give numbers. Begin with a sketch of both journeys on one chart, time to the right and distance "
    "upwards, and say why the later line is the steeper one. Then set up one equation for each train, name "
    "every letter that you use, and solve them by elimination and once more by substitution, because half of "
    "the pupils have learnt only one of the two. My colleague Martha insists that rounding belongs at the "
    "very end; show what goes wrong if somebody rounds earlier. Afterwards I need three variations: an easy "
    "one with bicycles on a canal path, a harder one in which the second vehicle loses a quarter of its "
    "speed on a hill, and a last one, for those who finish first, where a headwind depends on the hour of "
    "the day. Each should have a clean answer that fits into a small box. Add common mistakes with a "
    "friendly remark on how to spot them, such as mixing kilometres and miles, counting the delay twice, or "
    "reading a clock as a duration. If you quote a formula, mention where it comes from. Keep paragraphs "
    "short, avoid jargon, and put solutions on a separate page so that the sheet can be copied without them. "
    "Finally, suggest a homework task that uses real timetables: which website to open, what to write down, "
    "how many stops to compare, and a rubric of four criteria by which I can mark forty notebooks over a "
    "weekend. The school printer has no colour, the lesson lasts three quarters of an hour, and two pupils "
    "read with a screen reader, therefore describe every picture in words too. Thank you, and do tell me "
    "frankly should any of this be too much for a single lesson."
)
"""More than four hundred tokens that do not repeat themselves: an encoder that merges like tokens would have
it easy with a short text said several times."""

MESSAGE_BYTES_MAX = 64 * 1024 * 1024

PER_STREAM_SECONDS_MAX = 30.0
"""A stream that takes longer counts as unanswered."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """The two messages of a request, serialised."""

    headers: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a body."""

    ms: float
    """From the body's message to the reply, as the client saw it."""
    outcome: str
    """`routed`, `fallback` …; empty where nothing came."""


def prompt_of(framer: Framer, tokens: int) -> str:
    """A text of `tokens` ids, [CLS] and [SEP] included, give or take one word."""
    words = LONG.split()
    count = 1
    while len(framer._tokenizer.encode(_words(words, count), add_special_tokens=False).ids) < tokens - 2:
        count += 1
    return _words(words, count)


def _words(words: list[str], count: int) -> str:
    return " ".join(words[index % len(words)] for index in range(count))


def chat(model: str, text: str = PROMPT, **more: Any) -> bytes:
    """A chat completion whose answer is one token."""
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}
    ).encode()


def bodies(model: str) -> dict[str, bytes]:
    """Bodies as they are met in the wild: a question, an agent's tools, a picture, a long document."""
    tool = {"type": "function", "function": {"name": "look_up", "description": PROMPT * 2, "parameters": {}}}
    picture = base64.b64encode(random.Random(0).randbytes(1_050_000)).decode()
    parts = [
        {"type": "text", "text": PROMPT},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture}},
    ]
    return {
        "2 KB": chat(model, LONG),
        "42 KB, tools": chat(model, PROMPT, tools=[tool] * 58),
        "1.4 MB, image": chat(model, messages=[{"role": "user", "content": parts}]),
        "10 MB": chat(model, LONG * 5_200),
    }


def exchange(body: bytes) -> Exchange:
    """A request's messages in Envoy's order: headers, then the whole body."""
    fields = {
        ":method": "POST",
        ":path": "/v1/chat/completions",
        ":authority": "localhost:10000",
        ":scheme": "http",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "user-agent": "semroute-bench",
        "accept": "*/*",
        "x-forwarded-proto": "http",
        "x-request-id": "7b1f4f0e-8c1c-4b52-9d8e-2d7d1b6f0c11",
    }
    first, second = pb.ProcessingRequest(), pb.ProcessingRequest()
    for key, value in fields.items():
        header = first.request_headers.headers.headers.add()
        header.key, header.raw_value = key, value.encode()
    second.request_body.body = body
    second.request_body.end_of_stream = True
    return Exchange(first.SerializeToString(), second.SerializeToString())


class Client:
    """Plays Envoy on one server's socket; use as an async context manager."""

    def __init__(self, address: str) -> None:
        options = [
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._call: Any = self._channel.stream_stream(f"/{SERVICE}/Process")

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def send(self, request: Exchange) -> tuple[float, bytes]:
        """One stream to its end: milliseconds from the body to its reply, and the reply."""
        call = self._call(timeout=PER_STREAM_SECONDS_MAX)
        await call.write(request.headers)
        await call.read()
        started = perf_counter()
        await call.write(request.body)
        reply = await call.read()
        took = (perf_counter() - started) * 1e3
        await call.done_writing()
        await call.read()
        return took, reply

    async def closed(self, request: Exchange, count: int, concurrency: int) -> float:
        """Send `count` streams, `concurrency` at a time; returns the seconds they took."""

        async def lane(number: int) -> None:
            for _ in range(number):
                await self.send(request)

        started = perf_counter()
        await asyncio.gather(*(lane(count // concurrency) for _ in range(concurrency)))
        return perf_counter() - started


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and tail."""
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    return {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "p999": cuts[998]}

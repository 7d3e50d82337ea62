"""Hostile bodies on a real sidecar: none holds the event loop, none takes much memory, however many come.

A body of 32 KiB as sent, of any kind: each member of each API, each content-encoding, structure and text.
Dense bodies of twice and four times that, which are below the limits of structure, and of several megabytes.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import grpc
import pytest
import zstandard
from semroute_demo.process import Process, free_port
from semroute_demo.sidecar import CONFIG_PATH

from semroute_extproc.envoy._pb import external_processor_pb2 as pb
from semroute_extproc.envoy.server import SERVICE

PROBED = Path(__file__).parents[2] / "helpers" / "probed_sidecar.py"
SENT_BYTES = 32_768
COUNTED_BYTES = (60_000, 130_000)  # with as many parts as are read
PLAIN_BYTES = 4 * 1024**2  # of a dense body without an encoding
INFLATED_BYTES = (2_000_000, 30_000_000)  # under and over what is inflated
HELD_MS_MAX = 20.0
REQUEST_BYTES_MAX = 64 * 1024**2
TOTAL_BYTES_MAX = 256 * 1024**2
ATTEMPTS = 6  # the best counts: on a busy machine, the scheduler holds the loop as well
AT_ONCE = 200

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "deflate": lambda data: zlib.compress(data, 1),
    "zstd": zstandard.compress,
    "br": lambda data: brotli.compress(data, quality=1),
}
MEMBERS = {
    "/v1/chat/completions": (
        "messages",
        "tools",
        "functions",
        "metadata",
        "chat_template_kwargs",
        "thinking",
    ),
    "/v1/completions": ("prompt", "unknown"),
    "/v1/responses": ("input", "tools", "text", "reasoning"),
    "/v1/messages": ("messages", "system", "tools", "output_config"),
    "/v1/embeddings": ("input", "texts", "messages"),
    "/v1/rerank": ("documents",),
}
ELEMENTS = {
    "list": "[]",
    "zero": "0",
    "string": '"ab"',
    "object": "{}",
    "nested": "[[[[[[[[]]]]]]]]",
    "deep": "[" * 400 + "]" * 400,
    "nan": "NaN",
    "part": '{"type":"text","text":"a"}',
    "message": '{"role":"user","content":"a"}',
    "result": '{"type":"tool_result","content":[{}]}',
    "surrogate": '"\\ud800"',
    "member": '"k%d":[]',
}
TEXTS = (
    "Here is the question:\n",
    "answer:\n",
    "<|im_start|>user",
    "<a ",
    "<a></a>",
    "[",
    '{"',
    "\n> ",
    "$",
    "é中 ",
)
CHAT = "/v1/chat/completions"


def filled(element: str, around: str, size: int) -> str:
    """`around` with so many elements that it has about this size."""
    count = max((size - len(around)) // (len(element) + 2), 1)
    each = [element % n for n in range(count)] if "%d" in element else [element] * count
    return around.replace("...", ",".join(each))


def structures() -> Iterator[tuple[str, str, Callable[[int], str]]]:
    """Name, path and what gives a body of a size."""
    for path, members in MEMBERS.items():
        for member in members:
            for name, element in ELEMENTS.items():
                value = "{...}" if name == "member" else "[...]"
                yield f"{path} {member} {name}", path, make(element, f'"{member}":{value}')
                if member in ("messages", "input"):
                    within = f'"{member}":[{{"role":"user","content":{value}}}]'
                    yield f"{path} {member} content {name}", path, make(element, within)
    yield "members", CHAT, make('"k%d":0', '"a":0,...')
    yield "models", CHAT, make('"model":7', '..., "model":"auto"')


def texts() -> Iterator[tuple[str, str, Callable[[int], str]]]:
    for text in TEXTS:
        for role in ("user", "tool", "system"):
            one = json.dumps({"role": role, "content": text * (1_500 // len(text))})
            yield f"{role} turns of {text!r}", CHAT, make(one, '"messages":[...]')
        one = json.dumps(text)[1:-1]
        yield f"text of {text!r}", CHAT, make_text(one)


def make(element: str, around: str) -> Callable[[int], str]:
    return lambda size: filled(element, f'{{"model":"auto",{around}}}', size)


def make_text(unit: str) -> Callable[[int], str]:
    around = '{"model":"auto","messages":[{"role":"user","content":"%s"}]}'
    return lambda size: around % (unit * ((size - len(around)) // len(unit)))


def encoded() -> Iterator[tuple[str, str, str, bytes]]:
    """Name, path, content-encoding and body as sent."""
    encodings = [*COMPRESS]
    for number, (name, path, body) in enumerate([*structures(), *texts()]):
        for size in (SENT_BYTES, COUNTED_BYTES[number % 2]):
            yield f"{name}, plain of {size}", path, "", body(size).encode()
        every = number % 32 == 0
        for coding in encodings if every else [encodings[number % len(encodings)]]:
            for size in INFLATED_BYTES if every else INFLATED_BYTES[:1]:
                yield f"{name}, {coding} of {size}", path, coding, COMPRESS[coding](body(size).encode())
    for codec in ("utf-16", "utf-32"):
        lists = filled("[]", '{"model":"auto","x":[...]}', INFLATED_BYTES[0] // 4)
        yield codec, CHAT, "gzip", gzip.compress(lists.encode(codec))
    broken = b'{"model":"auto","a":"' + b"\\" * 1_000_000
    yield "escapes without an end", CHAT, "gzip", gzip.compress(broken)


class Server:
    """A sidecar with a probe."""

    def __init__(self, folder: Path) -> None:
        self.socket, self.probe = folder / "w0.sock", folder / "probe.sock"
        settings = {
            "SEMROUTE__SERVER__LISTEN": f"unix:{self.socket}",
            "SEMROUTE__ADMIN__LISTEN": f"127.0.0.1:{free_port()}",
            "SEMROUTE__SERVER__DRAIN_SECONDS": "0",
            "SEMROUTE__ENCODER__BY_LANGUAGE": "{}",
            "SEMROUTE__TELEMETRY__LOG_DECISIONS": "false",
        }
        command = [sys.executable, str(PROBED), str(self.probe), str(CONFIG_PATH)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings}
        self.process = Process("sidecar", command, folder / "log", environment=environment)
        self.process.start(self.socket.exists, 120.0)

    async def read(self) -> dict[str, Any]:
        """What the probe saw since the last call."""
        reader, writer = await asyncio.open_unix_connection(str(self.probe))
        found: dict[str, Any] = json.loads(await reader.read())
        writer.close()
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("sidecar"))
    yield running
    running.process.stop()


@pytest.fixture
async def ask(server: Server) -> AsyncIterator[Callable[..., Any]]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{server.socket}", options) as channel:
        process = channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )

        async def asked(path: str, coding: str, body: bytes) -> str:
            """The kind of reply to the body."""
            call: Any = process()
            message = pb.ProcessingRequest()
            fields = {":method": "POST", ":path": path, "content-type": "application/json"}
            for key, value in {**fields, "content-encoding": coding}.items():
                message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
            await call.write(message)
            await call.read()
            await call.write(pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True)))
            reply = await call.read()
            call.cancel()
            return str(reply.WhichOneof("response"))

        for _ in range(5):
            await asked(CHAT, "", b'{"model":"auto","messages":[{"role":"user","content":"hello"}]}')
        yield asked


@pytest.mark.timeout(1_800)
async def test_no_body_holds_the_event_loop_or_takes_much_memory(
    server: Server, ask: Callable[..., Any]
) -> None:
    bad = {}
    for name, path, coding, body in encoded():
        held, taken = [], []
        for _ in range(ATTEMPTS):
            before = await server.read()
            assert await ask(path, coding, body) in ("request_body", "immediate_response")
            after = await server.read()
            held.append(after["held_ms"])
            taken.append(after["peak"] - before["now"])
            if held[-1] <= HELD_MS_MAX:
                break
        if min(held) > HELD_MS_MAX or max(taken) > REQUEST_BYTES_MAX:
            bad[name] = (round(min(held), 1), round(max(taken) / 1024**2, 1))
    assert bad == {}


LEADS = "\n".join(["Here is the question for the user:"] * 800)
COSTLY = {
    "names": ["{" + ",".join(f'"{n:x}":""' for n in range(24_000)) + "}"],
    "long names": ["{" + ",".join(f'"{"aB" * 500}{n}":""' for n in range(240)) + "}"],
    "lists": ['{"a":[' + "[]," * 80_000 + "[]]}"],
    "tokens of a template": ["<|im_start|>user" * 500] * 15,
    "tags": ["<aB></aB>" * 900] * 15,
    "tags without an end": [("[abc]" * 1_500 + "<aB>" * 1_500 + "</c>[/c]")] * 15,
    "labels": [LEADS],
    "labels in JSON": [json.dumps({"question": LEADS})] * 6,
    "labels in escapes of JSON": [json.dumps({"question": LEADS}).replace("\\n", "\\u000a")] * 4,
}
"""Turns whose reading costs more than their length says."""


async def holds_no_longer(server: Server, ask: Callable[..., Any], body: bytes) -> None:
    """Assert that a request holds the event loop for at most `HELD_MS_MAX`, in the best of some attempts."""
    held = []
    for _ in range(ATTEMPTS):
        await server.read()
        assert await ask(CHAT, "", body) in ("request_body", "immediate_response")
        held.append((await server.read())["held_ms"])
        if held[-1] <= HELD_MS_MAX:
            break
    assert min(held) <= HELD_MS_MAX, held


def hidden(text: str) -> str:
    """A string of JSON whose commas and brackets do not count as parts of the body."""
    escapes = {ord(each): f"\\u{ord(each):04x}" for each in ",[{"}
    return json.dumps(text).translate(escapes)


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.timeout(300)
async def test_no_text_holds_the_event_loop(server: Server, ask: Callable[..., Any], name: str) -> None:
    turns = [f'{{"role":"user","content":{hidden(text)}}}' for text in (*COSTLY[name], "and why?")]
    body = f'{{"model":"auto","messages":[{",".join(turns)}]}}'.encode()
    await holds_no_longer(server, ask, body)


@pytest.mark.timeout(300)
async def test_large_bodies_that_wait_take_the_memory_of_one_copy_each(
    server: Server, ask: Callable[..., Any]
) -> None:
    body = make_text("a")(24 * 1024**2).encode()
    before = await server.read()
    replies = await asyncio.gather(*(ask(CHAT, "", body) for _ in range(12)))
    after = await server.read()
    assert {*replies} <= {"request_body", "immediate_response"}
    assert after["peak"] - before["now"] < 12 * 2 * len(body)


@pytest.mark.parametrize("model", ["auto", "Qwen/Qwen3-8B", "qwen/qwen3-8b"])  # routed, named, and to edit
@pytest.mark.parametrize(
    "element", ["[]", "0", '""', "{}", "[[[[[[[[]]]]]]]]", "1.5e3", "NaN", '"k%d":0', "text, \\"]
)
@pytest.mark.timeout(300)
async def test_no_dense_body_of_several_megabytes_holds_the_event_loop(
    server: Server, ask: Callable[..., Any], element: str, model: str
) -> None:
    around = '"messages":[{"role":"user","content":"hi"}],"x":' + ("{...}" if "%d" in element else "[...]")
    if element.startswith("text"):
        around, element = '"messages":[{"role":"user","content":"..."}]', json.dumps(element)[1:-1]
    body = filled(element, f'{{"model":"{model}",{around}}}', PLAIN_BYTES).encode()
    await holds_no_longer(server, ask, body)


@pytest.mark.timeout(600)
async def test_many_at_once_take_a_bounded_amount_of_memory(server: Server, ask: Callable[..., Any]) -> None:
    kinds = [each[1:] for each in encoded() if each[2]][::16]
    before = await server.read()
    replies = await asyncio.gather(*(ask(*kinds[n % len(kinds)]) for n in range(AT_ONCE)))
    after = await server.read()
    assert {*replies} <= {"request_body", "immediate_response"}
    assert after["peak"] - before["now"] < TOTAL_BYTES_MAX

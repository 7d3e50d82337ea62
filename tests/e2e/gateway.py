"""What the end-to-end tests drive: real Envoy, the sidecar as a process, simulated pools."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from semroute_demo.envoy import Bootstrap, Envoy, Variant, shipped, variant
from semroute_demo.pool import Pool, Speed
from semroute_demo.sidecar import Sidecar

CONFIG_PATH = Path(__file__).with_name("semroute.yaml")

T = TypeVar("T")


CONTROL = [
    *(
        "/sleep?level=2",
        "/wake_up",
        "/is_sleeping",
        "/pause",
        "/resume",
        "/abort_requests",
        "/update_weights",
    ),
    *("/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc", "/server_info", "/scale_elastic_ep"),
    *("/start_profile", "/stop_profile", "/metrics", "/load", "/docs", "/openapi.json", "/redoc", "/", ""),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/load_lora_adapter/", "/load_lora_adapter"),
    *("/sleep/", "//sleep", "/v1/../sleep", "/v1/%2e%2e/sleep", "/%73leep", "/v1x/sleep", "/%2fsleep"),
    *("/v1/%6coad_lora_adapter", "/v1/load%5Flora_adapter", "/v1%2fload_lora_adapter?a=/v1/models"),
    *("/v1//load_lora_adapter", "/v1/./load_lora_adapter", "/V1/../collective_rpc"),
]
"""Paths that control a model server or tell about it."""


class Background:
    """An event loop in a thread, for pools that must answer while a test waits for something else."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Pools:
    """The two simulated pools, in the background."""

    def __init__(self, background: Background) -> None:
        self._background = background
        speed = Speed(first_token_seconds=0.005, token_seconds=0.0005, slots=64)
        self.small = Pool("small", ("small-model",), speed)
        # The default pool serves the virtual names too, so that they are answered when the sidecar is gone.
        self.large = Pool("large", ("large-model", "auto", "auto-weak", "auto-strong"), speed)
        for pool in self:
            background.run(pool.start())

    def __iter__(self) -> Iterator[Pool]:
        return iter((self.small, self.large))

    def clear(self) -> None:
        for pool in self:
            pool.received.clear()
            pool.faults.clear()

    @property
    def addresses(self) -> dict[str, tuple[str, int]]:
        return {f"vllm-{pool.name}": ("127.0.0.1", pool.port) for pool in self}

    def stop(self) -> None:
        for pool in self:
            self._background.run(pool.stop())


@dataclass
class Gateway:
    """A running Envoy with the sidecars and pools behind it."""

    envoy: Envoy
    sidecars: Sequence[Sidecar]
    pools: Pools

    @property
    def url(self) -> str:
        return self.envoy.url

    @property
    def small(self) -> Pool:
        return self.pools.small

    @property
    def large(self) -> Pool:
        return self.pools.large

    def counter(self, name: str) -> int:
        """A counter of the ext_proc filter."""
        return self.envoy.stats(f"ext_proc.*{name}$").get(f"http.ingress.ext_proc.semroute.{name}", 0)

    def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's line for a request, once it is written."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [line for line in self.envoy.access_log() if line["request_id"] == request_id]
            return bool(found)

        wait_for(look, 5, f"the access log's line of {request_id}")
        return found[-1]


def start_sidecar(
    folder: Path, name: str = "sidecar", config: Path = CONFIG_PATH, **settings: str
) -> Sidecar:
    """A ready sidecar with a folder of its own; settings as `SERVER__DEADLINE_MS="5"`."""
    own = folder / name
    own.mkdir()
    sidecar = Sidecar(config, own, {f"SEMROUTE__{key}": value for key, value in settings.items()})
    sidecar.start()
    return sidecar


def start_gateway(
    folder: Path,
    sidecars: Sequence[Sidecar],
    pools: Pools,
    *,
    processing_mode: Mapping[str, str] | None = None,
    ext_proc: Mapping[str, Any] | None = None,
    addresses: Mapping[str, tuple[str, int]] | None = None,
    health_interval: str | None = None,
    down: Sequence[str] = (),
    answering: bool = True,
    edit: Callable[[Bootstrap], None] = lambda _: None,
) -> Gateway:
    """The shipped Envoy in front of `sidecars` and `pools`, with the changes a test needs.

    `edit` changes the bootstrap in any other way. Returns when every cluster is healthy but those in
    `down`, and the sidecar answers unless it must not.
    """
    changes = Variant(
        sockets=[str(path) for sidecar in sidecars for path in sidecar.sockets],
        pools={**pools.addresses, **(addresses or {})},
        processing_mode=processing_mode or {},
        ext_proc=ext_proc or {},
        health_interval=health_interval,
        response_headers={"x-semroute-difficulty": "difficulty", "x-semroute-outcome": "outcome"},
    )
    bootstrap = variant(shipped(), changes)
    edit(bootstrap)
    envoy = Envoy(bootstrap, folder)
    envoy.start()
    gateway = Gateway(envoy, sidecars, pools)
    try:
        for cluster in set(changes.pools) - set(down):
            wait_for(lambda name=cluster: envoy.healthy(name), 10, f"{cluster} to be healthy")
        wait_for(lambda: envoy.healthy("semroute"), 10, "the sidecar to be healthy")
        if answering:
            envoy.wait_for_sidecar()
        # What the main thread knows reaches Envoy's workers a moment later.
        time.sleep(0.1)
    except BaseException:
        envoy.stop()
        raise
    return gateway


def wait_for(condition: Callable[[], bool], seconds_max: float, what: str) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds_max} s for {what}"
        time.sleep(0.02)


def chat(
    text: str = "What is the capital of Australia?", model: str = "auto-weak", **more: Any
) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def dump(body: Mapping[str, Any]) -> bytes:
    """Compact JSON, as the sidecar writes it: an edit changes nothing but the named member."""
    return json.dumps(body, separators=(",", ":")).encode()


# --- HTTP/1.1 by hand: what a well-behaved client library will not send ---


@dataclass
class RawResponse:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def raw_request(head: Sequence[str]) -> bytes:
    return "\r\n".join([*head, "", ""]).encode()


def chunked(pieces: Sequence[bytes], trailers: Sequence[str] = ()) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n" + b"".join(f"{line}\r\n".encode() for line in trailers) + b"\r\n"


@contextlib.contextmanager
def connect(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", gateway.envoy.port), timeout=20) as connection:
        yield connection


def send_until_answered(connection: socket.socket, data: bytes, piece_bytes: int = 65_536) -> None:
    """Send `data`, but stop as soon as the other side says something."""
    sent = 0
    while sent < len(data):
        readable, writable, _ = select.select([connection], [connection], [], 20)
        if readable or not writable:
            break
        sent += connection.send(data[sent : sent + piece_bytes])


def read_response(connection: socket.socket) -> RawResponse:
    """One response with a content-length, a chunked body, or none (101, 204)."""
    with connection.makefile("rb") as stream:
        return read_message(stream)


def read_message(stream: Any) -> RawResponse:
    """One HTTP/1.1 message, request or response; of a request the status is 0."""
    first = stream.readline().decode("latin-1").split(" ")
    headers: dict[str, str] = {}
    while (line := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        while (line := stream.readline().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[f"trailer:{name.lower()}"] = value.strip()
    elif "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    return RawResponse(int(first[1]) if first[0].startswith("HTTP/") else 0, headers, body)


class RawUpstream:
    """An upstream that shows what Envoy really sends: heads, trailers, lengths, bytes after an upgrade."""

    def __init__(self) -> None:
        self.requests: list[RawResponse] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.peek(1):
                    message = read_message(self.rfile)
                    if message.headers.get("user-agent") == "Envoy/HC":
                        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        continue
                    outer.requests.append(message)
                    if message.headers.get("upgrade") == "websocket":
                        head = [
                            "HTTP/1.1 101 Switching Protocols",
                            "upgrade: websocket",
                            "connection: upgrade",
                        ]
                        self.wfile.write(raw_request(head))
                        while data := self.rfile.read1(65_536):
                            self.wfile.write(data.upper())
                        return
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                    self.wfile.write(chunked([b"he", b"llo"], ["x-checksum: 42"]))

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address: tuple[str, int] = ("127.0.0.1", self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

"""A simulated vLLM pool: vLLM's HTTP interface in front of a model that only counts and waits.

Everything that routing can see is realistic (names, errors, usage, streaming, queueing, metrics); the
rest is invented. Run one with `python -m semroute_demo.pool --name small`.
"""

import asyncio
import contextlib
import hashlib
import json
import signal
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import click
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from semroute_demo import shapes
from semroute_extproc.request import forms
from semroute_extproc.request.apis import TEXT_APIS
from semroute_extproc.request.paths import PATHS
from semroute_extproc.request.view import Api

BODY_BYTES_MAX = 64 * 1024 * 1024  # larger than the gateway's limit, which therefore applies first
RECORDED_MAX = 256  # how many requests are remembered
RECORDED_BYTES_MAX = 1024 * 1024  # of larger bodies only length and hash are remembered
CONTEXT = 32_768  # tokens that each model says it can read
CACHE_TOKENS = 32_768  # tokens the simulated KV cache holds

TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Speed:
    """How long the simulated model takes, and how many requests it runs at once."""

    first_token_seconds: float = 0.02
    token_seconds: float = 0.001
    slots: int = 16  # requests that run at once; more wait (`--max-num-seqs`)
    queue_max: int = 256  # requests that may wait; more get 503 (`--max-num-queued-reqs`)


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of one request."""

    status: int = 0  # answer this error instead
    message: str = "This failure was requested."  # of the error
    silent: bool = False  # close the connection instead of answering
    drop_after: int | None = None  # close the connection after this many events of a stream


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived."""

    path: str  # with the query
    headers: Mapping[str, str]  # lower-case names; of a repeated header the last value
    length: int
    sha256: str
    body: bytes  # empty if it was longer than `RECORDED_BYTES_MAX`


class Pool:
    """One simulated pool. Use as an async context manager, or `start` and `stop` it."""

    def __init__(self, name: str, models: Sequence[str], speed: Speed = Speed()) -> None:
        self.name = name
        self.models = tuple(models)
        """Served names; answers carry the first one, as vLLM's do."""
        self.speed = speed
        self.received: deque[Received] = deque(maxlen=RECORDED_MAX)
        self.faults: deque[Fault] = deque()
        """Each request to a generating endpoint takes the next one."""
        self.exposes = True  # whether it has a metrics page
        self.port = 0
        self._slots = asyncio.Semaphore(speed.slots)
        self._running = self._waiting = self._cached_tokens = 0
        self._registry = CollectorRegistry()

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            metric = Gauge(f"vllm:{name}", text, ("engine", "model_name"), registry=self._registry)
            metric.labels("0", self.models[0]).set_function(value)

        gauge("num_requests_running", "Requests in execution.", lambda: self._running)
        gauge("num_requests_waiting", "Requests waiting for a slot.", lambda: self._waiting)
        used = "Share of the KV cache in use, 0 to 1."
        gauge("kv_cache_usage_perc", used, lambda: min(1.0, self._cached_tokens / CACHE_TOKENS))
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; with port 0 the system chooses one, and `port` is the chosen one."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.add_routes([web.post(path, self._generate) for path in PATHS])
        pages = {"/v1/models": self._list_models, "/health": self._health, "/metrics": self._expose}
        app.add_routes([web.get(path, page) for path, page in pages.items()])
        # As in vLLM: compressed bodies are not unpacked, an idle connection closes after 5 s, and a client
        # that disconnects cancels its generation.
        as_vllm: Any = {"auto_decompress": False, "keepalive_timeout": 5.0, "handler_cancellation": True}
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **as_vllm)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the listener and its remaining connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _expose(self, request: web.Request) -> web.Response:
        page = generate_latest(self._registry) if self.exposes else b""
        return web.Response(status=200 if page else 404, body=page, content_type="text/plain")

    async def _list_models(self, request: web.Request) -> web.Response:
        self._record(request, b"")
        card = {"object": "model", "owned_by": "vllm", "max_model_len": CONTEXT}
        cards = [{"id": model, "root": model, **card} for model in self.models]
        return web.json_response({"object": "list", "data": cards}, headers={"x-sim-pool": self.name})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        headers = {"x-sim-pool": self.name, "x-sim-sha256": self._record(request, content)}
        fault = self.faults.popleft() if self.faults else Fault()
        api = PATHS[request.path]
        if fault.silent and request.transport is not None:
            request.transport.abort()
        if fault.status:
            return _error(fault.status, fault.message, headers)
        kind = request.headers.get("content-type", "")
        try:
            form = kind.startswith(forms.FORM)
            body = {"model": forms.model_of(content, kind)} if form else json.loads(content)
        except (ValueError, RecursionError) as error:
            return _error(400, f"The body is not JSON: {error}", headers)
        if not isinstance(body, dict):
            return _error(400, "The body is not a JSON object.", headers)
        model = body.get("model") or self.models[0]
        if model not in self.models:
            text = f"The model `{model}` does not exist. Valid names: {', '.join(self.models)}"
            return _error(404, text, headers, wrapped=api is Api.MESSAGES)
        if api not in TEXT_APIS:
            return web.json_response({"model": self.models[0], "object": api}, headers=headers)
        if self._waiting >= self.speed.queue_max:
            return _error(503, "The engine is currently busy. Try again later.", headers)
        name = f"chatcmpl-{request.headers.get('x-request-id') or uuid.uuid4().hex}"
        answer = shapes.answer(api, body, self.name, self.models[0], name, int(time.time()))
        made = len(answer.pieces)
        async with self._slot(answer.prompt_tokens + made):
            await asyncio.sleep(self.speed.first_token_seconds)
            if not answer.stream:
                await asyncio.sleep(self.speed.token_seconds * made)
                return web.json_response(shapes.body(answer), headers=headers)
            kind = "text/event-stream; charset=utf-8"
            response = web.StreamResponse(headers={"content-type": kind, **headers})
            await response.prepare(request)
            for sent, (event, timed) in enumerate(shapes.events(answer)):
                if sent == fault.drop_after and request.transport is not None:
                    request.transport.abort()
                    break
                if timed:
                    await asyncio.sleep(self.speed.token_seconds)
                await response.write(event)
            else:
                await response.write_eof()
        return response

    @contextlib.asynccontextmanager
    async def _slot(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a slot, then hold it and `tokens` of the cache."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        self._cached_tokens += tokens
        try:
            yield
        finally:
            self._running -= 1
            self._cached_tokens -= tokens
            self._slots.release()

    def _record(self, request: web.Request, content: bytes) -> str:
        """Remember the request; returns the SHA-256 of its body."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        digest = hashlib.sha256(content).hexdigest()
        kept = content if len(content) <= RECORDED_BYTES_MAX else b""
        self.received.append(Received(request.path_qs, headers, len(content), digest, kept))
        return digest


def _error(status: int, message: str, headers: Mapping[str, str], wrapped: bool = False) -> web.Response:
    """An error in vLLM's words; `wrapped` as its Anthropic endpoint does."""
    error = {"message": message, "type": TYPES.get(status, "Error"), "param": None, "code": status}
    body = {"type": "error", "error": error} if wrapped else {"error": error}
    return web.json_response(body, status=status, headers=headers)


@click.command(help="Serve a simulated vLLM pool.")
@click.option("--name", default="small", show_default=True, help="Name of the pool, stated in its answers.")
@click.option("--model", "models", multiple=True, help="A served model name; repeat it for aliases.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 for any.")
def main(name: str, models: tuple[str, ...], host: str, port: int) -> None:
    """Serve until interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # process 1 of a container would ignore it

    async def serve() -> None:
        pool = Pool(name, models or (name,), Speed(first_token_seconds=0.15, token_seconds=0.01))
        await pool.start(host, port)
        click.echo(f"simulated pool {name} on {host}:{pool.port}", err=True)
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()

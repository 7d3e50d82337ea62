"""An OpenAI-compatible server that a test starts and scripts: it answers, fails, dawdles and hangs up."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Act:
    """How one request is dealt with instead of being answered properly."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    body: bytes | None = None
    """Sent as it stands."""
    hang_up: bool = False
    """Announce more than is sent, and close the connection."""


def completion(text: str, tokens: int = 5, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
    }


def labeled(probabilities: Mapping[str, float]) -> dict[str, Any]:
    """A completion with the log-probabilities of its one token."""
    answer = completion(next(iter(probabilities), ""), 1, "length")
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in probabilities.items()]
    first = {"token": "", "logprob": 0.0, "bytes": None, "top_logprobs": top}
    answer["choices"][0]["logprobs"] = {"content": [first]}
    return answer


@contextmanager
def in_a_thread(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[OpenAIServer]:
    """A server for a test that is not asynchronous itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = OpenAIServer(answer)
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class OpenAIServer:
    """Listens on a port of its own while used as an async context manager."""

    def __init__(
        self, answer: Callable[[dict[str, Any]], dict[str, Any]], tls: ssl.SSLContext | None = None
    ) -> None:
        self.answer = answer
        self._tls = tls
        self.script: deque[Act] = deque()
        """Each request takes the next one."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.at: list[float] = []
        self.peers: set[Any] = set()
        self.delay = 0.0
        self.now = 0
        self.most_at_once = 0
        self.url = ""

    async def __aenter__(self) -> OpenAIServer:
        app = web.Application()
        app.add_routes([web.post("/v1/chat/completions", self._chat)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.at.append(time.monotonic())
        self.peers.add(request.transport.get_extra_info("peername") if request.transport else None)
        act = self.script.popleft() if self.script else Act()
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await asyncio.sleep(act.delay + self.delay)
        finally:
            self.now -= 1
        content = act.body
        if content is None:
            content = json.dumps(
                self.answer(body) if act.status == 200 else {"error": {"message": "no"}}
            ).encode()
        if act.hang_up:
            response = web.StreamResponse(headers={"content-length": str(len(content) + 100)})
            await response.prepare(request)
            await response.write(content)
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(
            status=act.status, body=content, content_type="application/json", headers=dict(act.headers)
        )

"""Honest clients: requests at a fixed rate through a gateway, and what became of each."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from gateway import chat

PER_SECOND = 40
SECONDS_MAX = 20.0  # for an answer; one that takes longer is lost
KINDS: Sequence[dict[str, Any]] = (
    {"model": "auto-weak"},
    {"model": "auto-strong"},
    {"model": "auto-weak", "stream": True},
    {"model": "large-model"},
)
"""Requests in turn: routed to either pool, streamed, and by the name of a pool's model."""


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    sent: float  # seconds since the start
    seconds: float
    status: int  # 0: no whole answer
    outcome: str  # the sidecar's; empty if it did not decide
    pool: str  # that answered

    @property
    def lost(self) -> bool:
        """Not answered, or with an error."""
        return self.status != 200

    @property
    def undecided(self) -> bool:
        return not self.lost and not self.outcome


class Traffic:
    """Sends at its rate until stopped; requests do not wait for each other."""

    def __init__(self, url: Callable[[], str], per_second: float = PER_SECOND) -> None:
        """`url` is called for each request, as a load balancer chooses a gateway."""
        self._url, self._pause = url, 1.0 / per_second
        self.answers: list[Answer] = []  # in the order of their ends
        self._tasks: set[asyncio.Task[None]] = set()
        self.started = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    async def __aenter__(self) -> Traffic:
        # A new connection per request would measure the client; connections that the other end closed are
        # replaced, and a request on one of them is sent again, as clients do.
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS_MAX))
        self._loop = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> Sequence[Answer]:
        """Every answer, in the order of sending."""
        self._loop.cancel()
        await asyncio.gather(self._loop, *self._tasks, return_exceptions=True)
        await self._session.close()
        return sorted(self.answers, key=lambda answer: answer.sent)

    async def _run(self) -> None:
        for number, kind in enumerate(itertools.cycle(KINDS)):
            await asyncio.sleep(max(0.0, number * self._pause - self.now))
            task = asyncio.create_task(self._send(number, kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, number: int, kind: dict[str, Any]) -> None:
        sent, status, outcome, pool = self.now, 0, "", ""
        body = chat(f"What is {number} plus {number}?", max_tokens=8, **kind)
        try:
            async with self._session.post(f"{self._url()}/v1/chat/completions", json=body) as response:
                content = await response.read()
                outcome = response.headers.get("x-semroute-outcome", "")
                pool = response.headers.get("x-sim-pool", "")
                whole = not kind.get("stream") or content.endswith(b"data: [DONE]\n\n")
                status = response.status if whole else 0
        except (aiohttp.ClientError, TimeoutError):
            pass
        self.answers.append(Answer(sent, self.now - sent, status, outcome, pool))

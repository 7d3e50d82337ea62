"""The pools of conversations in a Valkey or Redis that several processes share.

A lookup takes `timeout_ms` at most, and none at all for a moment after several failed: what the
memory does not say in time or has lost, this process's own says instead. Writing is never waited for:
what is yet to be written, or could not be, is remembered here and wins over the older that is there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from semroute_extproc.errors import ConfigError
from semroute_extproc.settings.controllers import RemoteSessions, SessionController

PREFIX = "semroute:session:"
"""Beginning of every key."""

WRITES_MAX = 64
"""Writes under way at once; more are dropped and counted."""

UNWRITTEN_MAX = 16_384
"""Conversations whose last pool the memory does not have; the oldest goes first."""

WRITE_SECONDS_MAX = 1.0
"""How long one write may take."""

FAILURES_MAX = 5
"""Lookups that may fail in a row before they are left out for a while."""

PAUSE_SECONDS = 1.0
"""How long they are left out."""

POOL_CHARACTERS_MAX = 128
"""Longest name of a pool that is believed."""


class Memory(Protocol):
    """What is asked of the client library; `redis.asyncio.Redis` is one."""

    async def get(self, name: str) -> bytes | None:
        """The value of a key."""
        ...

    async def set(self, name: str, value: str, ex: int) -> object:
        """Set it, to be forgotten after `ex` seconds."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Unwritten:
    pool: str
    at: float


class SharedSessions:
    """Reads and writes the shared memory; nothing of it raises."""

    def __init__(
        self, memory: Memory, timeout_ms: float, ttl_seconds: float, count: Callable[[str], None]
    ) -> None:
        """`count` is told each trouble: `timeout`, `error`, `paused`, `write_error`, `write_dropped`."""
        self._memory = memory
        self._timeout = timeout_ms / 1e3
        self._ttl = max(int(ttl_seconds), 1)
        self._count = count
        self._failures = 0
        self._paused_until = 0.0
        self._writes: set[asyncio.Task[None]] = set()
        self._unwritten: OrderedDict[str, _Unwritten] = OrderedDict()

    async def find(self, key: str, deadline: float) -> str:
        """The pool, "" if there is none or the memory did not say; by the loop's `deadline` at last."""
        now = monotonic()
        if (newer := self._unwritten.get(key)) is not None:
            if now - newer.at <= self._ttl:
                return newer.pool
            del self._unwritten[key]
        if now < self._paused_until:
            self._count("paused")
            return ""
        try:
            loop_now = asyncio.get_running_loop().time()
            async with asyncio.timeout_at(min(loop_now + self._timeout, deadline)):
                value = await self._memory.get(PREFIX + key)
            pool = "" if value is None else value[:POOL_CHARACTERS_MAX].decode("utf-8", "replace")
        except TimeoutError:
            self._failed("timeout", now)
            return ""
        except Exception:
            # The library's own errors and the socket's alike, and a value that is none of ours.
            self._failed("error", now)
            return ""
        self._failures = 0
        return pool

    def keep(self, key: str, pool: str) -> None:
        """Write without waiting."""
        entry = self._unwritten[key] = _Unwritten(pool, monotonic())
        self._unwritten.move_to_end(key)
        if len(self._unwritten) > UNWRITTEN_MAX:
            self._unwritten.popitem(last=False)
        if len(self._writes) >= WRITES_MAX or monotonic() < self._paused_until:
            self._count("write_dropped")
            return
        task = asyncio.get_running_loop().create_task(self._write(key, entry))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Give writes under way their time, then close the connections."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=WRITE_SECONDS_MAX)
        try:
            await self._memory.aclose()
        except Exception:
            self._count("error")

    async def _write(self, key: str, entry: _Unwritten) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX):
                await self._memory.set(PREFIX + key, entry.pool, ex=self._ttl)
        except Exception:
            self._count("write_error")
            return
        # Unless a later one took its place while this was being written.
        if self._unwritten.get(key) is entry:
            del self._unwritten[key]

    def _failed(self, what: str, now: float) -> None:
        self._count(what)
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            # One lookup after the pause decides whether there is another.
            self._paused_until, self._failures = now + PAUSE_SECONDS, FAILURES_MAX - 1


def connect(settings: SessionController, count: Callable[[str], None]) -> SharedSessions | None:
    """The shared memory that `settings` names, None if none.

    Raises ConfigError without the library, or for an address that it cannot read.

    Nothing is sent yet: a memory that is down makes no start fail.
    """
    if settings.remote is None:
        return None
    client = _client(settings.remote)
    return SharedSessions(client, settings.remote.timeout_ms, settings.ttl_seconds, count)


def _client(settings: RemoteSessions) -> Memory:
    try:
        from redis import asyncio as library
    except ImportError:
        raise ConfigError(
            ["controllers.session.remote: needs the extra: pip install 'semroute-extproc[valkey]'"]
        ) from None
    url = settings.url.get_secret_value()
    for ours, theirs in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
        if url.startswith(ours):
            url = theirs + url.removeprefix(ours)
    try:
        client: Memory = library.Redis.from_url(
            url, max_connections=2 * WRITES_MAX, socket_connect_timeout=1.0
        )
    except ValueError:
        # The library's message repeats the part it cannot read, which may be one of a password.
        raise ConfigError(
            ["controllers.session.remote.url: has an option that the library refuses"]
        ) from None
    return client

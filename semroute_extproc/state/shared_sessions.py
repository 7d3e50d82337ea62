"""Stores the pools of conversations in a Valkey or Redis server that several processes share.

After several failed lookups, lookups pause briefly and the process's own entries are used.
An entry that is not written yet, or failed to be, is kept here and overrides the store's older one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from cachetools import TTLCache

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Emit, SessionStoreError, ignore
from semroute_extproc.io.breaker import Breaker
from semroute_extproc.settings.controllers import RemoteSessions, SessionController, SharedStore

if TYPE_CHECKING:
    from redis.asyncio import Redis

PREFIX = "semroute:session:"  # Of every key in the store.
WRITES_MAX = 64  # Concurrent writes; further ones are dropped and counted.
WRITE_SECONDS_MAX = 1.0
UNWRITTEN_MAX = 16_384  # Conversations whose last pool is not in the store; the oldest is dropped first.
FAILURES_MAX, PAUSE_SECONDS = 5, 1.0  # Consecutive failed lookups, and the pause of lookups after them.
POOL_CHARACTERS_MAX = 128  # Longest pool name that is accepted from the store.


class SharedSessions:
    """Reads and writes the shared store; never raises."""

    def __init__(
        self, store: Redis, timeout_ms: float, ttl: float, emit: Emit, clock: Callable[[], float] = monotonic
    ) -> None:
        """Every failure is emitted as a SessionStoreError."""
        self._store, self._emit, self._clock = store, emit, clock
        self._timeout, self._ttl = timeout_ms / 1e3, max(int(ttl), 1)
        self._breaker = Breaker(FAILURES_MAX, PAUSE_SECONDS)
        self._writes: set[asyncio.Task[None]] = set()
        self._unwritten: TTLCache[str, tuple[str]] = TTLCache(UNWRITTEN_MAX, self._ttl, clock)

    async def find(self, key: str, deadline: float) -> str:
        """Look up the pool before `deadline` (the loop's clock); "" if there is none or no answer."""
        # Not get(), which reads the clock twice.
        with suppress(KeyError):
            return self._unwritten[key][0]
        if not self._breaker.allows(self._clock()):
            self._emit(SessionStoreError("paused"))
            return ""
        try:
            async with asyncio.timeout_at(min(asyncio.get_running_loop().time() + self._timeout, deadline)):
                value: bytes | None = await self._store.get(PREFIX + key)
            pool = "" if value is None else value[:POOL_CHARACTERS_MAX].decode("utf-8", "replace")
        except Exception as error:
            # Raised by the library or the socket, or for a value of another type.
            self._emit(SessionStoreError("timeout" if isinstance(error, TimeoutError) else "error"))
            self._breaker.failed(self._clock())
            return ""
        except BaseException:
            self._breaker.gave_up()
            raise
        self._breaker.succeeded()
        return pool

    def keep(self, key: str, pool: str) -> None:
        """Start a write without waiting for it."""
        entry = self._unwritten[key] = (pool,)
        if len(self._writes) >= WRITES_MAX or self._breaker.paused(self._clock()):
            self._emit(SessionStoreError("write_dropped"))
            return
        task = asyncio.create_task(self._write(key, entry))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Wait for the writes in progress, then close the connections."""
        if self._writes:
            await asyncio.wait(self._writes, timeout=WRITE_SECONDS_MAX)
        try:
            await self._store.aclose()
        except Exception:
            self._emit(SessionStoreError("error"))

    async def _write(self, key: str, entry: tuple[str]) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX):
                await self._store.set(PREFIX + key, entry[0], ex=self._ttl)
            # A later entry, even an equal one, must still be written.
            if self._unwritten.get(key) is entry:
                del self._unwritten[key]
        except Exception:
            self._emit(SessionStoreError("write_error"))


def connect(
    settings: SessionController | None, emit: Emit = ignore, store: SharedStore | None = None
) -> SharedSessions | None:
    """The store of conversations, if configured: their own or the one of all; raises ConfigError."""
    if settings is None or (remote := settings.remote or store) is None:
        return None
    client = client_of(remote, "controllers.session.remote" if settings.remote else "controllers.store")
    return SharedSessions(client, remote.timeout_ms, settings.ttl_seconds, emit)


def client_of(remote: RemoteSessions, path: str) -> Redis:
    """A client; raises ConfigError for a missing library or an invalid URL."""
    try:
        from redis import asyncio as library

        # The library calls the schemes `valkey` and `valkeys` `redis` and `rediss`.
        url = re.sub("^valkey", "redis", remote.url.get_secret_value())
        return library.Redis.from_url(url, max_connections=2 * WRITES_MAX, socket_connect_timeout=1.0)
    except ImportError:
        problem = ": needs the extra: pip install 'semroute-extproc[valkey]'"
    except ValueError:
        # The library's message is dropped, because it repeats part of the URL, possibly of the password.
        problem = ".url: has an option that the library rejects"
    raise ConfigError([f"{path}{problem}"])

"""Shares limits, live scores and the pools of requests between processes, in a Valkey or Redis server.

A request waits for it only to look up its conversation's pool, for a few milliseconds. A task exchanges what
has changed, in one round trip, a few times per second. While the store does not answer, every process
continues with what it has, and each failure is counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import ssl
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from cachetools import TTLCache

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Emit, SessionStoreError, SharedStoreFailed
from semroute_extproc.io.breaker import Breaker
from semroute_extproc.settings.controllers import SharedStore
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.ledger import CONTACT_SECONDS, STARTER, Ledger
from semroute_extproc.state.live import BIAS_MAX, UNSENT_MAX, WINDOW, LiveScores

if TYPE_CHECKING:
    from redis.asyncio import Redis

PREFIX = "semroute:"  # Of every key in the store.
SESSION = f"{PREFIX}session:"  # Before a conversation's key, which is a hash.
SYNC_SECONDS, IDLE_SECONDS = 0.1, 1.0  # Interval of exchanges, and without a change.
HURRY_SECONDS = 0.01  # Least interval.
ANSWER_SECONDS_MAX = 0.5  # For one exchange.
LEDGERS_MAX, REQUESTS_MAX, ENTRIES_MAX = 512, 4_096, 64  # Of one exchange: limits, pools, lists of scores.
COMMANDS_MAX = 256  # For another thread at once: each takes the event loop some 20 µs.
UNSAVED_MAX = 16_384  # Conversations that wait for the store; the oldest is dropped first.
CONNECTIONS_MAX = 128  # One for each lookup, and one for the exchange.
FAILURES_MAX, PAUSE_SECONDS = 5, 1.0  # Consecutive failed lookups, and the pause of lookups after them.
KEY_SECONDS_MAX = 14 * 86_400  # Expiry of what belongs to no window; the longest window has 7 days.
SCORES_SECONDS, OUTCOME_SECONDS = 86_400, 6 * 3_600  # Expiry of live scores, and of a request's pool.
SETTLING_SECONDS = 3.0  # After the store has lost its data, for all to report, before it grants anything.
POOL_BYTES_MAX, ENTRY = 128, re.compile(rb"\d{1,19}-\d{1,19}")  # Longest name of a pool; an entry's number.

PROBLEMS = {
    "timeout": f"it did not answer within {ANSWER_SECONDS_MAX:g} s",
    "connection": "it cannot be reached, or it closed the connection",
    "auth": "it refused the user or the password of controllers.store.url",
    "tls": "TLS failed: check the scheme of controllers.store.url and the server's certificate",
    "refused": "it refused a command: it must be a Valkey 7 or Redis 7 primary that allows scripts",
    "garbage": "its answer is not one of Valkey",
    "dropped": "more has changed than can wait for it",
}

_HERE = Path(__file__).parent
SCRIPTS = {name: (_HERE / f"{name}.lua").read_text() for name in ("contact", "lease", "scores")}
SHA = {name: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for name, text in SCRIPTS.items()}

logger = structlog.get_logger("semroute.store")

Call = tuple[tuple[Any, ...], Callable[[Any], object]]  # A command, and what takes its answer.


def client_of(settings: SharedStore) -> Redis:
    """A client; raises ConfigError for a missing library or an invalid URL."""
    try:
        from redis import asyncio as library

        # The library calls the schemes `valkey` and `valkeys` `redis` and `rediss`.
        url = re.sub("^valkey", "redis", settings.url.get_secret_value())
        return library.Redis.from_url(url, max_connections=CONNECTIONS_MAX, socket_connect_timeout=1.0)
    except ImportError:
        problem = ": needs the extra: pip install 'semroute-extproc[valkey]'"
    except ValueError:
        # The library's message is dropped, because it repeats part of the URL, possibly of the password.
        problem = ".url: has an option that the library rejects"
    raise ConfigError([f"controllers.store{problem}"])


class SharedState:
    """One process's part in the shared store; inactive until configured."""

    def __init__(
        self,
        controllers: ControllerState,
        emit: Emit,
        clock: Callable[[], float] = monotonic,
        connect: Callable[[SharedStore], Redis] = client_of,
    ) -> None:
        """Belongs to the running event loop; `connect` makes the client of a store."""
        self._connect, self._controllers, self._ledgers = connect, controllers, controllers.ledgers
        self._loop, self._hurry, self._clock = asyncio.get_running_loop(), asyncio.Event(), clock
        self._emit, controllers.hurry = emit, self._hurry.set
        self._process, self._sequence = secrets.token_hex(8), count(1)
        self._settings: SharedStore | None = None
        self._store: Redis | None = None
        self._key, self._time, self._began = b"", "0", ""  # The store's time, and when it began.
        self._tried, self._answered, self.lost = -math.inf, clock(), ""
        self._pools = deque[tuple[str, str]]()  # Of requests that the store does not know.
        self._unsaved = TTLCache[str, tuple[str]](UNSAVED_MAX, math.inf, clock)  # Pools of conversations.
        self._breaker = Breaker(FAILURES_MAX, PAUSE_SECONDS)

    def configure(self, settings: SharedStore | None, session_seconds: float = 1.0) -> Redis | None:
        """Use a store, with an idle time for sessions, or none; returns the old one. Raises ConfigError."""
        if session_seconds != self._unsaved.ttl:
            self._unsaved = TTLCache(UNSAVED_MAX, session_seconds, self._clock)
        if settings == self._settings:
            return None
        store, before = self._connect(settings) if settings else None, self._store
        self._settings, self._store, self._time, self._began = settings, store, "0", ""
        self._breaker = Breaker(FAILURES_MAX, PAUSE_SECONDS)
        self._key = settings.key.get_secret_value().encode()[:64] if settings else b""
        self._answered, self._ledgers.contact = self._clock(), -math.inf
        return before

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            if self._pools or self._unsaved or self._clock() - self._tried >= IDLE_SECONDS or self._changed():
                await self.sync()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), SYNC_SECONDS)
            self._hurry.clear()
            await asyncio.sleep(HURRY_SECONDS)

    async def sync(self) -> None:
        """One exchange; never raises."""
        if (store := self._store) is None:
            return
        self._tried = self._clock()
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._exchange(store)
        except Exception as error:
            what = problem_of(error)
            self._emit(SharedStoreFailed(what))
            if what != self.lost:
                logger.warning("store.failed", problem=PROBLEMS[what], hint="each process goes on by itself")
            self.lost = what
        else:
            if self.lost:
                logger.info("store.answers")
            self.lost, self._answered = "", self._clock()

    @property
    def age(self) -> float:
        """Seconds since the store answered; 0 without a store."""
        return self._clock() - self._answered if self._store else 0.0

    async def find(self, conversation: str, deadline: float) -> str:
        """A conversation's pool before `deadline` (the loop's clock); "" if there is none or no answer."""
        if (store := self._store) is None or self._settings is None:
            return ""
        # What is not saved yet is newer than the store. Not get(), which reads the clock twice.
        with suppress(KeyError):
            return self._unsaved[conversation][0]
        if not self._breaker.allows(self._clock()):
            self._emit(SessionStoreError("paused"))
            return ""
        until = min(self._loop.time() + self._settings.timeout_ms / 1e3, deadline)
        try:
            async with asyncio.timeout_at(until):
                value: bytes | None = await store.get(SESSION + conversation)
            pool = "" if value is None else value[:POOL_BYTES_MAX].decode("utf-8", "replace")
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

    def keep(self, conversation: str, pool: str) -> None:
        """Send a conversation's pool to the store with the next exchange."""
        if self._store is not None:
            if len(self._unsaved) >= UNSAVED_MAX and conversation not in self._unsaved:
                self._emit(SharedStoreFailed("dropped"))
            self._unsaved[conversation] = (pool,)

    def remember(self, request_id: str, pool: str) -> None:
        """Send the pool of a logged request with the next exchange; from any thread."""
        if self._store is not None and len(self._pools) < REQUESTS_MAX:
            self._pools.append((request_id, pool))
        elif self._store is not None:
            self._emit(SharedStoreFailed("dropped"))

    def pools_of(self, request_ids: Sequence[str]) -> dict[str, str]:
        """The pools of requests that any process logged; from a thread other than the loop's."""
        found = self._ask([("GET", self._name("pool", each)) for each in request_ids])
        known = zip(request_ids, found, strict=False)
        pools = {key: value[:POOL_BYTES_MAX] for key, value in known if isinstance(value, bytes)}
        return {key: value.decode("utf-8", "replace") for key, value in pools.items()}

    def first(self, reports: Sequence[str]) -> list[bool]:
        """Whether no process had each report before; from a thread other than the loop's."""
        claims = [("SET", self._name("report", each), "", "NX", "EX", OUTCOME_SECONDS) for each in reports]
        return [each is not None for each in self._ask(claims)] or [True] * len(reports)

    async def close(self) -> None:
        """Exchange one last time, and close the connections."""
        await self.sync()
        if (store := self.configure(None)) is not None:
            with suppress(Exception):
                await store.aclose()

    def _changed(self) -> bool:
        due = next(self._ledgers.due(self._ledgers.wall()), None)
        return due is not None or any(each.waiting for each in self._controllers.traffic.values())

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Answers for a thread other than the loop's; none if the store does not give them."""
        if (store := self._store) is None or self.lost:
            return []
        found, run = list[Any](), asyncio.run_coroutine_threadsafe
        try:
            for start in range(0, len(commands), COMMANDS_MAX):
                asked = self._answers(store, commands[start : start + COMMANDS_MAX])
                found += run(asked, self._loop).result(2 * ANSWER_SECONDS_MAX)
            return found
        except Exception as error:
            self._emit(SharedStoreFailed(problem_of(error)))
            return []

    async def _answers(self, store: Redis, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The answers of commands that are sent together; one may be an exception."""
        pipe = store.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    async def _exchange(self, store: Redis, loaded: bool = False) -> None:
        from redis.exceptions import NoScriptError

        calls = [*self._calls()]
        answers = await self._answers(store, [command for command, _ in calls])
        if not loaded and any(isinstance(each, NoScriptError) for each in answers):
            # The store has restarted, or its data was lost: record that before scripts can run again.
            mark = ("EVAL", SCRIPTS["contact"], *self._contact(restarted=1)[2:])
            await self._answers(store, [mark, *(("SCRIPT", "LOAD", text) for text in SCRIPTS.values())])
            await self._exchange(store, loaded=True)
            return
        for (_, take), answer in zip(calls, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            take(answer)

    def _calls(self) -> Iterator[Call]:
        """What has changed."""
        now, due = self._ledgers.wall(), [*islice(self._ledgers.due(self._ledgers.wall()), LEDGERS_MAX)]
        for ledger in due:
            keys = self._name("limit", f"{ledger.name}:{ledger.window}"), *self._of_all()
            limit = ledger.most, ledger.processes, ledger.began, ledger.limit.window_seconds
            about = next(self._sequence), *limit, STARTER, SETTLING_SECONDS, *ledger.report(now)
            yield self._script("lease", keys, *about), partial(_grant, ledger, ledger.window)
        for name, traffic in self._controllers.traffic.items():
            reference = f"{name}:{array('d', traffic.reference).tobytes().hex()}"
            keys = self._name("bias", reference), self._name("scores", reference)
            scores, moved = traffic.unsent()
            change = len(scores), moved, traffic.bias - moved, BIAS_MAX, traffic.since
            content = array("f", scores).tobytes(), *change, WINDOW, ENTRIES_MAX, SCORES_SECONDS
            yield self._script("scores", keys, *content), partial(self._merge, traffic, moved, len(scores))
        for request, pool in self._pools.copy():
            name = self._name("pool", request)
            yield ("SET", name, pool, "EX", OUTCOME_SECONDS), lambda _: self._pools.popleft()
        for conversation in [*islice(self._unsaved, REQUESTS_MAX)]:
            if entry := self._unsaved.get(conversation):
                save = "SET", SESSION + conversation, entry[0], "EX", max(int(self._unsaved.ttl), 1)
                yield save, partial(self._saved, conversation, entry)
        if len(due) < LEDGERS_MAX:  # Else the process is not present until the others are reported.
            yield self._contact(), self._contacted

    def _saved(self, conversation: str, entry: tuple[str], _: Any) -> None:
        if self._unsaved.get(conversation) is entry:  # A later one, even an equal one, is not saved yet.
            del self._unsaved[conversation]

    def _script(self, name: str, keys: tuple[str, ...], *arguments: Any) -> tuple[Any, ...]:
        return "EVALSHA", SHA[name], len(keys), *keys, self._process, *arguments

    def _contact(self, restarted: int = 0) -> tuple[Any, ...]:
        times = self._ledgers.wall(), self._time, CONTACT_SECONDS
        return self._script("contact", self._of_all(), *times, restarted, KEY_SECONDS_MAX)

    def _contacted(self, answer: Any) -> None:
        began, (self._time, self._began) = self._began, (f"{float(each):.3f}" for each in answer)
        self._ledgers.contact = self._ledgers.wall()
        if began not in ("", self._began):
            self._ledgers.forget()

    def _merge(self, traffic: LiveScores, moved: float, own: int, answer: Any) -> None:
        bias, requests, entries = answer
        others = list[float]()
        for number, (_, process, _, scores) in reversed(entries[:ENTRIES_MAX]):
            traffic.since = ENTRY.findall(number[:64])[0].decode()  # Now: bad scores are not read again.
            if process != self._process.encode():
                others += array("f", scores[: 4 * UNSENT_MAX])
        others = others[-WINDOW:]
        if not all(0.0 <= each <= 1.0 for each in (*others, abs(float(bias)) / BIAS_MAX)):
            raise ValueError("scores out of bounds")
        traffic.merge(others, float(bias), moved, int(requests), own)

    def _of_all(self) -> tuple[str, ...]:
        return self._name("contacts", ""), self._name("began", "")

    def _name(self, kind: str, key: str) -> str:
        """A key of the store; its hash says nothing about a tenant or a request."""
        text = f"{kind}:{key}".encode("utf-8", "surrogatepass")
        return f"{PREFIX}{kind}:{hashlib.blake2b(text, key=self._key, digest_size=16).hexdigest()}"


def _grant(ledger: Ledger, window: int, answer: Any) -> None:
    allowance, total, free = map(float, answer)
    if not all(0.0 <= each <= 2 * max(ledger.most, ledger.spent) for each in (allowance, total, free)):
        raise ValueError("amounts out of bounds")
    ledger.granted((allowance, total, free), window)


def problem_of(error: Exception) -> str:
    """The key of `PROBLEMS` for an exception of the library, the socket, or a bad answer."""
    from redis import exceptions as library

    kinds: dict[str, type[Exception] | tuple[type[Exception], ...]] = {
        "timeout": (TimeoutError, library.TimeoutError),
        "auth": (library.AuthenticationError, library.NoPermissionError),
        "garbage": library.InvalidResponse,
        "tls": ssl.SSLError,
        "connection": (library.ConnectionError, OSError),
        "refused": library.ResponseError,
    }
    chain = error, error.__cause__, error.__context__  # The library wraps some in a ConnectionError.
    known = (what for what, kind in kinds.items() if any(isinstance(each, kind) for each in chain))
    return next(known, "garbage")

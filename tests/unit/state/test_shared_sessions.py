"""The shared memory of conversations: never waited for long, never in the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import ValidationError

from semroute_extproc.errors import ConfigError
from semroute_extproc.events import Event, SessionStoreError, ignore
from semroute_extproc.settings.controllers import SessionController
from semroute_extproc.state import shared_sessions
from semroute_extproc.state.shared_sessions import FAILURES_MAX, WRITES_MAX, SharedSessions, connect


class FakeMemory:
    """A memory that answers after a while, or fails."""

    def __init__(self, delay: float = 0.0, error: Exception | None = None) -> None:
        self.delay, self.error = delay, error
        self.values: dict[str, bytes] = {}
        self.expiry: dict[str, int] = {}
        self.asked = 0

    async def get(self, name: str) -> bytes | None:
        self.asked += 1
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        return self.values.get(name)

    async def set(self, name: str, value: str, ex: int) -> object:
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error
        self.values[name] = value.encode()
        self.expiry[name] = ex
        return True

    async def aclose(self) -> None:
        if self.error:
            raise self.error


class Counted(list[str]):
    """What went wrong, in order."""

    def emit(self, event: Event) -> None:
        assert isinstance(event, SessionStoreError)
        self.append(event.what)


def shared(memory: FakeMemory, timeout_ms: float = 2.0, **more: Any) -> tuple[SharedSessions, Counted]:
    counted = Counted()
    return SharedSessions(memory, timeout_ms, 1_800.0, counted.emit, **more), counted


def soon() -> float:
    return asyncio.get_running_loop().time() + 1.0


async def test_what_is_written_is_found_and_forgotten_in_time() -> None:
    memory = FakeMemory()
    subject, counted = shared(memory, 500.0)
    assert await subject.find("k", soon()) == ""
    subject.keep("k", "small")
    await subject.close()
    assert await subject.find("k", soon()) == "small"
    assert memory.expiry == {"semroute:session:k": 1_800}
    assert counted == []


async def test_a_slow_memory_costs_its_time_and_no_more() -> None:
    subject, counted = shared(FakeMemory(delay=5.0))
    started = time.perf_counter()
    assert await subject.find("k", soon()) == ""
    assert time.perf_counter() - started < 0.5
    assert counted == ["timeout"]


async def test_the_requests_own_deadline_comes_first() -> None:
    subject, counted = shared(FakeMemory(delay=5.0), timeout_ms=10_000.0)
    assert await subject.find("k", asyncio.get_running_loop().time() + 0.01) == ""
    assert counted == ["timeout"]


async def test_a_dead_memory_is_left_alone_for_a_while_and_tried_again() -> None:
    now = [100.0]
    memory = FakeMemory(error=ConnectionError())
    subject, counted = shared(memory, clock=lambda: now[0])
    for _ in range(FAILURES_MAX + 3):
        assert await subject.find("k", soon()) == ""
    assert memory.asked == FAILURES_MAX
    assert counted == ["error"] * FAILURES_MAX + ["paused"] * 3
    now[0] += 1.5
    await subject.find("k", soon())
    await subject.find("k", soon())
    assert memory.asked == FAILURES_MAX + 1, "one try, then the next pause"
    now[0] += 1.5
    memory.error = None
    assert await subject.find("k", soon()) == ""
    assert await subject.find("k", soon()) == ""


async def test_a_try_that_is_cancelled_does_not_keep_others_from_trying() -> None:
    now = [100.0]
    memory = FakeMemory(error=ConnectionError())
    subject, _ = shared(memory, 500.0, clock=lambda: now[0])
    for _ in range(FAILURES_MAX):
        await subject.find("k", soon())
    now[0] += 1.5
    memory.error, memory.delay = None, 5.0
    task = asyncio.create_task(subject.find("k", soon()))
    await asyncio.sleep(0)
    assert await subject.find("other", soon()) == "", "one at a time"
    assert memory.asked == FAILURES_MAX + 1
    task.cancel()
    await asyncio.wait([task])
    memory.delay = 0.0
    memory.values["semroute:session:k"] = b"small"
    assert await subject.find("k", soon()) == "small"


async def test_writes_are_not_waited_for_and_their_number_is_bounded() -> None:
    subject, counted = shared(FakeMemory(delay=0.05))
    for number in range(WRITES_MAX + 10):
        subject.keep(f"k{number}", "small")
    assert counted == ["write_dropped"] * 10
    await subject.close()


async def test_what_could_not_be_written_wins_over_the_older_that_is_there_until_it_is_written() -> None:
    now = [100.0]
    memory = FakeMemory()
    memory.values["semroute:session:k"] = b"small"
    subject, counted = shared(memory, 500.0, clock=lambda: now[0])
    memory.error = ConnectionError()
    for _ in range(FAILURES_MAX):
        await subject.find("other", soon())
    subject.keep("k", "large")
    assert counted[-1] == "write_dropped"
    memory.error = None
    now[0] += 1.5
    assert await subject.find("k", soon()) == "large"
    subject.keep("k", "large")
    await subject.close()
    memory.values["semroute:session:k"] = b"eyes"  # Another process, later.
    assert await subject.find("k", soon()) == "eyes"


async def test_a_write_that_fails_late_does_not_bring_an_older_pool_back() -> None:
    memory = FakeMemory(delay=0.05)
    subject, _ = shared(memory, 500.0)
    subject.keep("k", "small")
    await asyncio.sleep(0)
    memory.delay = 0.0
    subject.keep("k", "large")
    await asyncio.sleep(0.01)
    memory.error = ConnectionError()
    await subject.close()
    memory.error = None
    assert await subject.find("k", soon()) == "large"


async def test_what_is_yet_to_be_written_is_bounded_and_forgotten_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_sessions, "UNWRITTEN_MAX", 2)
    now = [100.0]
    memory = FakeMemory(error=ConnectionError())
    subject, _ = shared(memory, clock=lambda: now[0])
    for key in ("a", "b", "c"):
        subject.keep(key, "small")
    found = [await subject.find(key, soon()) for key in ("a", "b", "c")]
    assert found == ["", "small", "small"]
    now[0] += 1_801.0
    assert await subject.find("c", soon()) == ""


async def test_failures_of_writing_and_closing_are_counted() -> None:
    subject, counted = shared(FakeMemory(error=OSError()))
    subject.keep("k", "small")
    await subject.close()
    assert counted == ["write_error", "error"]


async def test_a_value_nobody_wrote_is_cut_and_harmless() -> None:
    memory = FakeMemory()
    memory.values["semroute:session:k"] = b"\xff" * 10_000
    subject, _ = shared(memory, 500.0)
    assert len(await subject.find("k", soon())) == 128


async def test_a_client_that_gives_something_else_than_bytes_is_an_error_and_no_more() -> None:
    memory = FakeMemory()
    memory.values["semroute:session:k"] = 7  # type: ignore[assignment]
    subject, counted = shared(memory, 500.0)
    assert await subject.find("k", soon()) == ""
    assert counted == ["error"]


def settings(url: str) -> SessionController:
    return SessionController.model_validate({"remote": {"url": url, "key": "k" * 16, "timeout_ms": 10}})


def test_none_is_configured_unless_it_is() -> None:
    assert connect(SessionController(), ignore) is None


def test_an_address_that_cannot_be_read_is_told_without_its_password() -> None:
    with pytest.raises(ValidationError) as caught:
        settings("redis://:s3/cret@host:6379/0")
    assert "write / as %2F" in caught.value.errors()[0]["msg"]
    assert "s3" not in caught.value.errors()[0]["msg"]
    with pytest.raises(ConfigError, match="has an option that the library rejects"):
        connect(settings("redis://host/0?socket_timeout=soon"), ignore)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    with pytest.raises(ConfigError, match=r"semroute-extproc\[valkey\]"):
        connect(settings("valkey://localhost"), ignore)


@asynccontextmanager
async def valkey() -> AsyncIterator[tuple[int, dict[bytes, bytes]]]:
    """Enough of a Valkey for its own client: GET, SET, and OK to everything else."""
    values: dict[bytes, bytes] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            words = []
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2])
            reply = b"+OK\r\n"
            if words[0] == b"HELLO":
                reply = b"%1\r\n$5\r\nproto\r\n:3\r\n"
            elif words[0] == b"SET":
                values[words[1]] = words[2]
            elif words[0] == b"GET":
                found = values.get(words[1])
                reply = b"$-1\r\n" if found is None else b"$%d\r\n%s\r\n" % (len(found), found)
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], values
    finally:
        server.close()


@pytest.fixture
def library() -> None:
    pytest.importorskip("redis", reason="needs the extra valkey")


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not look():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("library")
async def test_the_real_client_speaks_to_a_valkey() -> None:
    async with valkey() as (port, values):
        counted = Counted()
        subject = connect(settings(f"valkey://127.0.0.1:{port}/0"), counted.emit)
        assert subject is not None
        subject.keep("k", "large")
        await eventually(lambda: values == {b"semroute:session:k": b"large"})
        found = [await subject.find("k", soon()) for _ in range(3)]
        assert "large" in found
        assert counted == ["timeout"] * found.count(""), "a busy machine may take longer"
        await subject.close()


@pytest.mark.usefixtures("library")
async def test_the_real_client_without_a_server_is_an_error_and_no_more() -> None:
    counted = Counted()
    subject = connect(settings("valkey://127.0.0.1:9/0"), counted.emit)
    assert subject is not None
    assert await subject.find("k", soon()) == ""
    assert counted in (["error"], ["timeout"])
    await subject.close()

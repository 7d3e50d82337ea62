"""Something is looked at again, whatever the kernel gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from semroute_extproc.io.watch import notices


@pytest.fixture
def no_inotify(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's instances are used up, as by the other pods of a node."""

    async def refused(*_: Any, **__: Any) -> AsyncIterator[None]:
        raise RuntimeError("Error creating recommended watcher: Too many open files (os error 24)")
        yield

    monkeypatch.setattr(watchfiles, "awatch", refused)


async def test_a_change_is_noticed_at_once(tmp_path: Path) -> None:
    subject = notices(lambda: [tmp_path], asyncio.Event())
    notice = asyncio.ensure_future(anext(subject))
    await asyncio.sleep(0.3)
    (tmp_path / "a").touch()
    await asyncio.wait_for(notice, 5)
    await subject.aclose()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("no_inotify")
async def test_without_a_watch_the_clock_gives_notices_and_the_paths_are_asked_for_again(
    tmp_path: Path,
) -> None:
    asked: list[int] = []
    stop = asyncio.Event()
    subject = notices(lambda: asked.append(1) or [tmp_path], stop, 0.05)  # type: ignore[func-returns-value]
    async with asyncio.timeout(5):
        await anext(subject)
        await anext(subject)
        stop.set()
        assert [notice async for notice in subject] == []
    assert len(asked) == 2


async def test_with_nothing_to_watch_the_clock_gives_notices() -> None:
    async with asyncio.timeout(5):
        await anext(notices(list, asyncio.Event(), 0.05))


async def test_directories_that_come_and_go_are_watched_from_the_next_notice_on(tmp_path: Path) -> None:
    watched = [tmp_path / "a", tmp_path / "b"]
    watched[0].mkdir()
    subject = notices(lambda: watched, asyncio.Event(), 0.2)
    async with asyncio.timeout(5):
        await anext(subject)  # by the clock
        watched[1].mkdir()
        await anext(subject)
        notice = asyncio.ensure_future(anext(subject))
        await asyncio.sleep(0.05)
        (watched[1] / "file").touch()
        await notice
        watched[1].joinpath("file").unlink()
        watched[1].rmdir()
        await anext(subject)
    await subject.aclose()  # type: ignore[attr-defined]

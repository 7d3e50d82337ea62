"""Notices that something in a directory may have changed: from the kernel, and by the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import structlog
import watchfiles

POLL_SECONDS = 10.0
"""Longest time without a check, for missed notices and directories that cannot be watched."""

logger = structlog.get_logger("semroute.watching")


async def notices(paths: Callable[[], Collection[Path]], stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield when an entry of one of the directories `paths` changed, or after `POLL_SECONDS`, until `stop`.

    The kernel may refuse a watch: a directory is missing, or the user's inotify instances, which all pods
    of a node can share, are used up. Then only the clock counts, and `paths` is called again each time.
    """
    warned = False
    while not stop.is_set():
        try:
            if watched := paths():
                async for _ in watchfiles.awatch(
                    *watched,
                    stop_event=stop,
                    rust_timeout=int(POLL_SECONDS * 1000),
                    yield_on_timeout=True,
                    recursive=False,
                    watch_filter=None,
                ):
                    yield
                continue
        except (OSError, RuntimeError) as error:  # watchfiles' own error is a RuntimeError
            if not warned:
                logger.warning("watch.failed", problem=str(error), looking_every_seconds=POLL_SECONDS)
            warned = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_SECONDS)
        if not stop.is_set():
            yield

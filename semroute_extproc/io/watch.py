"""Reports possible changes of directories, by file system notifications and by polling."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path

import structlog
import watchfiles

POLL_SECONDS = 10.0  # Longest time between two yields, in case notifications are missed or not available

logger = structlog.get_logger("semroute.watching")


async def notices(
    paths: Callable[[], Collection[Path]], stop: asyncio.Event, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[None]:
    """Yield when an entry of one of the directories changed, or after `poll_seconds`, until `stop`.

    `paths` is called again after each yield; missing directories are left out.
    """
    warned = False
    watch = partial(watchfiles.awatch, stop_event=stop, recursive=False, watch_filter=None)
    while not stop.is_set():
        try:
            if watched := {path for path in paths() if path.is_dir()}:
                milliseconds = int(poll_seconds * 1000)
                async for _ in watch(*watched, rust_timeout=milliseconds, yield_on_timeout=True):
                    yield
                    if {path for path in paths() if path.is_dir()} != watched:
                        break
                continue
        except (OSError, RuntimeError) as error:
            # A directory is missing, or the node has no inotify instances left: only polling works.
            if not warned:
                logger.warning("watch.failed", problem=str(error), looking_every_seconds=poll_seconds)
            warned = True
        try:
            await asyncio.wait_for(stop.wait(), poll_seconds)
        except TimeoutError:
            yield

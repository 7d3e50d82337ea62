"""The signals of a running server; `semroute_extproc.cli` sets those of a starting one."""

import asyncio
import atexit
import os
import signal
from collections.abc import Callable


def handle(stop: Callable[[], object], reload: Callable[[], object]) -> None:
    """In the running loop, SIGTERM and SIGINT call `stop`, and SIGHUP calls `reload`.

    A loop's own handlers end with it, and SIGHUP would then end a process that is about to exit.
    """
    loop = asyncio.get_running_loop()

    def handler(number: int, _frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(reload if number == signal.SIGHUP else stop)
        elif number != signal.SIGHUP:
            os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)
        # At its end Python resets what it handles, but not what it ignores.
        atexit.register(signal.signal, number, signal.SIG_IGN)

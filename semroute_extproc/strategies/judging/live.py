"""The judges of a running server, over reloads."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from semroute_extproc.config.models import Config, JudgeStrategy
from semroute_extproc.errors import EndpointError
from semroute_extproc.strategies.judging.client import Judge

RETIRE_SECONDS = 15.0
"""After a reload: how long a judge that is no longer wanted may finish what it was asked."""


class CannotJudge(Exception):
    """A strategy's judge cannot be made."""

    def __init__(self, strategy: str, why: str) -> None:
        super().__init__(why)
        self.strategy = strategy


class Judges:
    """One judge for each `judge` strategy; those that a reload does not change keep what they know."""

    def __init__(self) -> None:
        self._live: Mapping[str, Judge] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def of(self, config: Config) -> Mapping[str, Judge]:
        """The judges of a configuration that is being loaded; raises CannotJudge for the first that fails.

        They are live once they are adopted; if they are not, there is nothing to undo.
        """
        judges: dict[str, Judge] = {}
        for name, settings in config.strategies.items():
            if not isinstance(settings, JudgeStrategy):
                continue
            live = self._live.get(name)
            if live is not None and live.settings == settings:
                judges[name] = live
                continue
            try:
                judges[name] = Judge(name, settings)
            except EndpointError as error:
                raise CannotJudge(name, str(error)) from None
        return judges

    def adopt(self, judges: Mapping[str, Judge]) -> None:
        """These are live now; streams that are open may ask the others for a while yet."""
        for name, judge in self._live.items():
            if judges.get(name) is not judge:
                task = asyncio.create_task(_retire(judge))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)
        self._live = judges

    async def close(self) -> None:
        """Close every connection."""
        retiring = list(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(judge.close() for judge in self._live.values()))


async def _retire(judge: Judge) -> None:
    try:
        await asyncio.sleep(RETIRE_SECONDS)
    finally:
        await judge.close()

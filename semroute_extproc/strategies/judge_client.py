"""Clients of the `judge` strategies' judges, kept across reloads. A judge's failure never fails a request."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from time import monotonic

import structlog
from cachetools import TTLCache

from semroute_extproc.errors import EndpointError
from semroute_extproc.io.http import Endpoint
from semroute_extproc.policy.context import Judgement
from semroute_extproc.request import reasoning
from semroute_extproc.request.view import Api
from semroute_extproc.state.breaker import Breaker
from semroute_extproc.strategies.judge import JudgeSettings, Question, probability

# Reason of an EndpointError to the result in the metric.
RESULTS = {"timeout": "timeout", "connection": "connection", "http": "http", "unreadable": "unparsable"}
# A judge that got less than this fraction of `timeout_ms` before the deadline is not blamed for a timeout.
TIME_MIN = 0.5
RETIRE_SECONDS = 15.0  # for a judge that a reload removed to finish its requests

logger = structlog.get_logger("semroute.judge")


class JudgeClient:
    """Asks one judge. Use within one event loop, and close it."""

    def __init__(self, name: str, settings: JudgeSettings, clock: Callable[[], float] = monotonic) -> None:
        """`clock` returns seconds for the cache and the breaker. Raises EndpointError (`setup`)."""
        self.name, self.settings, self._clock = name, settings, clock
        switch = reasoning.switch(reasoning.FAMILIES[settings.reasoning], Api.CHAT_COMPLETIONS, "none")
        self._question = Question(settings.model, settings.labels, tuple(switch.items()))
        url, key, authority = settings.url, settings.api_key_env, settings.ca_file
        self._endpoint = Endpoint(
            url, api_key_env=key, ca_file=authority, connections_max=settings.concurrency
        )
        self._scores = TTLCache[bytes, float](settings.cache_entries, settings.cache_seconds, timer=clock)
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._asking = 0

    async def ask(self, text: str, deadline: float) -> Judgement:
        """The judge's score of `text` before `deadline` (the loop's clock), or why not; never queues."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if (known := self._scores.get(key)) is not None:
            return Judgement(known, "cache")
        if self._asking >= self.settings.concurrency:
            return Judgement(None, "busy")
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0.0:
            return Judgement(None, "timeout")
        if not self._breaker.allows(self._clock()):
            return Judgement(None, "breaker")
        probe, patience = self._breaker.is_open, self.settings.timeout_ms / 1e3
        seconds, score, learned = min(left, patience), None, False
        self._asking += 1
        try:
            answer = await self._endpoint.post("/chat/completions", self._question.body(text), seconds)
            score, result, learned = probability(answer, self._question.scheme), "ok", True
        except EndpointError as error:
            result = RESULTS[error.reason]
            learned = result != "timeout" or seconds >= TIME_MIN * patience
        except Exception:
            result, learned = "error", True
            logger.exception("judge.failed", strategy=self.name)
        finally:
            self._asking -= 1
            # A client's disconnect cancels its request. If this request is the probe, end the probe.
            if not learned and probe:
                self._breaker.gave_up()
        if score is not None:
            self._breaker.succeeded()
            if self.settings.cache_entries:
                self._scores[key] = score
        elif learned:
            self._breaker.failed(self._clock())
        if (is_open := self._breaker.is_open) != probe:
            logger.warning("judge.breaker", strategy=self.name, open=is_open, last=result)
        return Judgement(score, result)

    async def close(self, after: float = 0.0) -> None:
        """Wait for `after` seconds, then close the connections, even if cancelled while waiting."""
        try:
            await asyncio.sleep(after)
        finally:
            await self._endpoint.close()


class CannotJudge(Exception):
    """The judge of a strategy cannot be created."""

    def __init__(self, strategy: str, why: str) -> None:
        super().__init__(why)
        self.strategy = strategy


class Judges:
    """One client for each `judge` strategy; a reload keeps clients whose settings are unchanged."""

    def __init__(self) -> None:
        self._live: Mapping[str, JudgeClient] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    def of(self, strategies: Mapping[str, object]) -> Mapping[str, JudgeClient]:
        """The judges of a configuration, not live until adopted; raises CannotJudge for the first failure."""
        judges: dict[str, JudgeClient] = {}
        for name, settings in strategies.items():
            if isinstance(settings, JudgeSettings):
                live = self._live.get(name)
                try:
                    judges[name] = live if live and live.settings == settings else JudgeClient(name, settings)
                except EndpointError as error:
                    raise CannotJudge(name, str(error)) from None
        return judges

    def adopt(self, judges: Mapping[str, JudgeClient]) -> None:
        """Make these judges live; open streams may use the old ones for `RETIRE_SECONDS`."""
        for name, judge in self._live.items():
            if judges.get(name) is not judge:
                task = asyncio.create_task(judge.close(after=RETIRE_SECONDS))
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

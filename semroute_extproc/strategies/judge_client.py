"""Clients of the `judge` strategies' judges. A judge's failure never fails a request."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from time import monotonic

import structlog
from cachetools import TTLCache

from semroute_extproc.errors import EndpointError
from semroute_extproc.io.breaker import Breaker
from semroute_extproc.io.http import Endpoint
from semroute_extproc.policy.context import Judgment
from semroute_extproc.request import reasoning
from semroute_extproc.request.view import Api
from semroute_extproc.settings.pools import ReasoningFamily
from semroute_extproc.strategies.judge import JudgeSettings, Question, probability

# Reason of an EndpointError to the result in the metric.
RESULTS = {name: name for name in ("timeout", "connection", "http")}
RESULTS |= dict.fromkeys(("unreadable", "no_label"), "unparsable")
TEXT_STATUSES = (400, 413, 422)  # caused by the text, for example one that is too long for the judge
# A judge that got less than this fraction of `timeout_ms` before the deadline is not blamed for a timeout.
TIME_MIN = 0.5
BYTES = 64 * 1024  # most of an answer: one token with its log-probabilities, decoded by the event loop

logger = structlog.get_logger("semroute.judge")


class JudgeClient:
    """Asks one judge. Use within one event loop, and close it."""

    def __init__(
        self,
        name: str,
        settings: JudgeSettings,
        clock: Callable[[], float] = monotonic,
        families: Mapping[str, ReasoningFamily] = reasoning.FAMILIES,
    ) -> None:
        """`clock` returns seconds for the cache and the breaker. Raises EndpointError (`setup`)."""
        self.name, self.settings, self._clock = name, settings, clock
        self.family = families[settings.reasoning]
        switch = reasoning.switch(self.family, Api.CHAT_COMPLETIONS, "none")
        self._question = Question(settings.model, settings.labels, tuple(switch.items()))
        url, key, trusted, most = settings.url, settings.api_key_env, settings.ca_file, settings.concurrency
        self._endpoint = Endpoint(url, api_key_env=key, ca_file=trusted, connections_max=most)
        self._scores = TTLCache[bytes, Judgment](settings.cache_entries, settings.cache_seconds, timer=clock)
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._asking = 0

    async def ask(self, text: str, deadline: float) -> Judgment:
        """The judge's score of `text` before `deadline` (the loop's clock), or why not; never queues."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if (known := self._scores.get(key)) is not None:
            return known
        if self._asking >= self.settings.concurrency:
            return Judgment(None, "busy")
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0.0:
            return Judgment(None, "timeout")
        if not self._breaker.allows(self._clock()):
            return Judgment(None, "breaker")
        probe, patience = self._breaker.is_open, self.settings.timeout_ms / 1e3
        seconds, score, learned, of_text = min(left, patience), None, False, False
        self._asking += 1
        try:
            answer = await self._endpoint.post("/chat/completions", self._question.body(text), seconds, BYTES)
            score, result, learned = probability(answer, self._question.scheme), "ok", True
        except EndpointError as error:
            result = RESULTS[error.reason]
            # What a client's text causes must not open the breaker for the others.
            of_text = error.reason == "no_label" or error.status in TEXT_STATUSES
            learned = not of_text and (result != "timeout" or seconds >= TIME_MIN * patience)
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
        elif learned:
            self._breaker.failed(self._clock())
        if self.settings.cache_entries and (score is not None or of_text):
            self._scores[key] = Judgment(score, "cache")
        if (is_open := self._breaker.is_open) != probe:
            logger.warning("judge.breaker", strategy=self.name, open=is_open, last=result)
        return Judgment(score, result)

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

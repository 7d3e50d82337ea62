"""The judge: a model of the operator's own that is asked how hard a request is.

    prompt   what it is asked and how its answer is read (pure)
    memory   the cache and the circuit breaker (pure)
    live     the judges of a server, over reloads
    offline  many texts at once, for calibration

It is asked beside the data path's promise, so nothing about it may fail a request: it has its own
deadline, a bound on what it is asked at once, and whatever happens `ask` returns.
"""

from __future__ import annotations

import asyncio
import hashlib
from time import monotonic

import structlog

from semroute_extproc.config.models import JudgeStrategy
from semroute_extproc.errors import EndpointError
from semroute_extproc.io.http import Endpoint
from semroute_extproc.policy.context import Judgement
from semroute_extproc.request import reasoning
from semroute_extproc.request.view import Api
from semroute_extproc.strategies.judging.memory import Breaker, Scores
from semroute_extproc.strategies.judging.prompt import Question, Unparsable, probability

RESULTS = {"timeout": "timeout", "connection": "connection", "http": "http", "unreadable": "unparsable"}
"""An endpoint's reason to the result that is counted."""

TIME_MIN = 0.5
"""A question that had less than this part of `timeout_ms`, because the decision's deadline was near, says
nothing of the judge if it ran out of time."""

logger = structlog.get_logger("semroute.judge")


class Judge:
    """Asks one judge. Use within one event loop, and close it."""

    def __init__(self, name: str, settings: JudgeStrategy) -> None:
        """Raises EndpointError with reason `setup`."""
        self.name = name
        self.settings = settings
        switch = reasoning.switch(settings.reasoning, Api.CHAT_COMPLETIONS, "none")
        self._question = Question(settings.model, settings.labels, tuple(switch.items()))
        self._endpoint = Endpoint(
            settings.url,
            api_key_env=settings.api_key_env,
            ca_file=settings.ca_file,
            connections_max=settings.concurrency,
        )
        self._salt = hashlib.sha256(repr((settings.url, self._question)).encode()).digest()
        self._scores = Scores(settings.cache_entries, settings.cache_seconds)
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_seconds)
        self._asking = 0

    async def ask(self, text: str, deadline: float) -> Judgement:
        """The judge's score of `text` before `deadline` (the loop's clock), or why there is none.

        Never raises, and never waits for its turn: a judge that is busy is not asked.
        """
        key = hashlib.sha256(self._salt + text.encode("utf-8", "surrogatepass")).digest()
        if (known := self._scores.get(key, monotonic())) is not None:
            return Judgement(known, "cache")
        if self._asking >= self.settings.concurrency:
            return Judgement(None, "busy")
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0.0:
            return Judgement(None, "timeout")
        if not self._breaker.allows(monotonic()):
            return Judgement(None, "breaker")
        was_open = self._breaker.is_open
        judgement = await self._ask(text, left, probe=was_open)
        if judgement.score is not None:
            self._scores.put(key, judgement.score, monotonic())
        if self._breaker.is_open != was_open:
            logger.warning(
                "judge.breaker", strategy=self.name, open=self._breaker.is_open, last=judgement.result
            )
        return judgement

    async def _ask(self, text: str, left: float, probe: bool) -> Judgement:
        patience = self.settings.timeout_ms / 1e3
        seconds = min(left, patience)
        self._asking += 1
        try:
            answer = await self._endpoint.post("/chat/completions", self._question.body(text), seconds)
            score = probability(answer, self._question.scheme)
        except EndpointError as error:
            if error.reason == "timeout" and seconds < TIME_MIN * patience:
                self._gave_up(probe)
            else:
                self._breaker.failed(monotonic())
            return Judgement(None, RESULTS[error.reason])
        except Unparsable:
            self._breaker.failed(monotonic())
            return Judgement(None, "unparsable")
        except Exception:
            self._breaker.failed(monotonic())
            logger.exception("judge.failed", strategy=self.name)
            return Judgement(None, "error")
        except BaseException:
            # A client that goes away cancels its question.
            self._gave_up(probe)
            raise
        finally:
            self._asking -= 1
        self._breaker.succeeded()
        return Judgement(score, "ok")

    def _gave_up(self, probe: bool) -> None:
        """A probe must not stay out for ever, nor be called back by a question asked before it."""
        if probe:
            self._breaker.gave_up()

    async def close(self) -> None:
        """Close its connections."""
        await self._endpoint.close()

"""Runs policies: the live one within its deadline, and its shadows, which never delay a request."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from time import perf_counter
from typing import Any, TypeVar

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.errors import BadBody, EncoderUnavailable
from semroute_extproc.events import Emit, Failed, Shadowed
from semroute_extproc.outcome import Cause, Stage
from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import Agreement, Decision, RoutingContext, Shadow
from semroute_extproc.policy.draw import draw_id, unit_interval
from semroute_extproc.policy.plan import SIGNALS, PolicyPlan, advanced
from semroute_extproc.request.view import LARGE
from semroute_extproc.strategies.judge_client import JudgeClient

T = TypeVar("T")

RULE_SPEED = 2  # how much faster rules read facts of turns than their text is judged
WAITING_MAX = 64  # Large requests that may wait; further ones are decided without their text.
PASSES_MAX = 32  # Concurrent encoder passes for shadows alone; beyond that, shadows stay undecided.


class Stages:
    """The deadline of one decision, on the running loop's clock, and its stages, timed."""

    def __init__(self, deadline_ms: float) -> None:
        self.clock = asyncio.get_running_loop().time
        self.deadline = self.clock() + deadline_ms / 1e3
        self._done: list[Stage] = []
        self._started = self._last = perf_counter()

    def mark(self, name: str) -> None:
        """Record that the stage `name` ends now."""
        now = perf_counter()
        self._done.append(Stage(name, (self._last - self._started) * 1e3, (now - self._last) * 1e3))
        self._last = now

    def run(self, size: int, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        """Call a function as `LargeRequests.run` does, before the deadline."""
        return LARGE_REQUESTS.run(size, self.deadline, function, *arguments)

    @property
    def times(self) -> dict[str, Any]:
        """The fields of an outcome: the stages so far, and milliseconds since the start."""
        return {"stages": tuple(self._done), "total_ms": (perf_counter() - self._started) * 1e3}


class LargeRequests:
    """One thread, so that large requests neither stop the event loop nor use much memory at a time.

    The smallest one is next, so that a few very large ones cannot keep the others waiting.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "large-requests")
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: size, number, turn
        self._numbers = count()
        self._busy = False

    async def run(self, size: int, deadline: float | None, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function, for a large request in the thread, unless it is cancelled before its turn.

        Raises BadBody `overloaded` if too many wait, or at the deadline (the loop's clock) before its turn.
        """
        if size <= LARGE:
            return function(*arguments)
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= WAITING_MAX:
            raise BadBody(Cause.OVERLOADED)
        entry = size, next(self._numbers), loop.create_future()
        heappush(self._waiting, entry)
        try:
            self._next()
            async with asyncio.timeout_at(deadline):
                await entry[2]
            return await loop.run_in_executor(self._thread, function, *arguments)
        except TimeoutError:
            raise BadBody(Cause.OVERLOADED) from None
        finally:
            if entry[2].done() and not entry[2].cancelled():
                self._busy = False
                self._next()
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapify(self._waiting)

    def _next(self) -> None:
        while self._waiting and not self._busy:
            _, _, turn = heappop(self._waiting)
            if not turn.done():  # its request was not cancelled
                turn.set_result(None)
                self._busy = True


LARGE_REQUESTS = LargeRequests()


@dataclass
class Driver:
    """Decides by policies, with an encoder and the judges of the `judge` strategies."""

    config: Config
    plans: Mapping[str, PolicyPlan]
    classifier: Classifier
    judges: Mapping[str, JudgeClient]
    emit: Emit
    _passes: set[asyncio.Task[None]] = field(default_factory=set)

    async def decide(
        self, policy: str, context: RoutingContext, stages: Stages
    ) -> tuple[Decision, RoutingContext]:
        """The decision, and the context that it was based on; raises NoCandidate."""
        plan = self.plans[policy]
        size = context.view.work // RULE_SPEED if any(rule.reads_turns for rule in plan.rules) else 0
        deciding = plan.decide(context)
        wanted = await stages.run(size, advanced, deciding, None)
        while not isinstance(wanted, Decision):
            stages.mark("policy")
            if wanted == SIGNALS:
                context = await self._read(context, stages.deadline)
                stages.mark("encode")
            else:
                judgment = await self.judges[wanted].ask(context.text, stages.deadline)
                judgments = {**context.judgments, wanted: judgment}
                context = dataclasses.replace(context, judgments=judgments)
                stages.mark("judge")
            wanted = await stages.run(size, advanced, deciding, context)
        stages.mark("policy")
        return wanted, context

    async def _read(self, context: RoutingContext, deadline: float) -> RoutingContext:
        """The context with the encoder's signals, or with the cause of their absence."""
        if not context.text:
            return dataclasses.replace(context, fallback=Cause.NO_TEXT)
        try:
            signals = await self.classifier.signals(context.text, context.language, deadline)
        except EncoderUnavailable as error:
            return dataclasses.replace(context, fallback=error.cause)
        return dataclasses.replace(context, signals=signals)

    async def shadows(self, policy: str, context: RoutingContext, live: Decision) -> tuple[Shadow, ...]:
        """The decisions of a live policy's shadows, from the context of the live decision, without waiting.

        A shadow that lacks signals or a judgment is undecided. If the request is in `shadow_share`, such
        shadows are left out here, decided in the background and emitted as `Shadowed`.
        """
        settings = self.config.policies[policy]
        if not settings.shadow:
            return ()
        # Shadows are compared on the request alone, so they ignore the conversation's pool.
        context = dataclasses.replace(context, held=None)
        asked = [Shadow(policy, name, Agreement.UNDECIDED) for name in settings.shadow]
        shadows = [await self._ask(each, context, live) for each in asked]
        undecided = [each for each in shadows if each.agreement is Agreement.UNDECIDED]
        drawn = unit_interval("shadow", policy, draw_id(context)) < settings.shadow_share
        if context.fallback or not (undecided and drawn and context.text and len(self._passes) < PASSES_MAX):
            return tuple(shadows)
        pass_ = asyncio.create_task(self._ask_later(undecided, context, live))
        self._passes.add(pass_)
        pass_.add_done_callback(self._passes.discard)
        return tuple(each for each in shadows if each not in undecided)

    async def _ask_later(self, shadows: Sequence[Shadow], context: RoutingContext, live: Decision) -> None:
        stages = Stages(self.config.server.deadline_ms)
        try:
            if context.signals is None:
                context = await self._read(context, stages.deadline)
        except Exception:
            self.emit(Failed("decision.failed", context.head.request_id))
        for shadow in shadows:
            # A shadow has no fallback: without signals it is undecided.
            self.emit(Shadowed(await self._ask(shadow, context, live, stages) if context.signals else shadow))

    async def _ask(
        self, asked: Shadow, context: RoutingContext, live: Decision, stages: Stages | None = None
    ) -> Shadow:
        """The decision of one shadow; its failures are contained. Waits only if `stages` is given."""
        try:
            if stages is None:
                size, shadow = context.view.work // RULE_SPEED, self.plans[asked.shadow]
                decision = await LARGE_REQUESTS.run(size, None, shadow.decide_now, context)
            else:
                decision, _ = await self.decide(asked.shadow, context, stages)
        except (NoCandidate, BadBody):
            decision = None
        except Exception:
            self.emit(Failed("decision.failed", context.head.request_id))
            return dataclasses.replace(asked, agreement=Agreement.ERROR)
        if decision is None:
            return asked
        agreement = Agreement.AGREE if decision.pool == live.pool else Agreement.DIFFER
        return dataclasses.replace(asked, agreement=agreement, pool=decision.pool, reason=decision.reason)

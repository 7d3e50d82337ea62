"""Runs a policy: gets the signals and judgements that it wants, within one deadline."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.outcome import Cause, Stage
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.strategies.judge_client import JudgeClient


class Stages:
    """The deadline of one decision, on the loop's clock, and its stages, timed."""

    def __init__(self, deadline_ms: float) -> None:
        """Call within the event loop."""
        self.deadline = asyncio.get_running_loop().time() + deadline_ms / 1e3
        self._done: list[Stage] = []
        self._started = self._last = perf_counter()

    def mark(self, name: str) -> None:
        """The stage `name` ends now."""
        now = perf_counter()
        self._done.append(Stage(name, (self._last - self._started) * 1e3, (now - self._last) * 1e3))
        self._last = now

    @property
    def times(self) -> dict[str, Any]:
        """The fields of an outcome: the stages so far, and milliseconds since the start."""
        return {"stages": tuple(self._done), "total_ms": (perf_counter() - self._started) * 1e3}


class Driver:
    """Decides by a policy, with an encoder and the judges of the `judge` strategies."""

    def __init__(self, classifier: Classifier, judges: Mapping[str, JudgeClient]) -> None:
        self._classifier, self._judges = classifier, judges

    async def decide(
        self, plan: PolicyPlan, context: RoutingContext, text: str, stages: Stages
    ) -> tuple[Decision, RoutingContext]:
        """The decision, and the context with all it was made of; raises NoCandidate."""
        deciding = plan.decide(context)
        try:
            wanted = next(deciding)
            while True:
                stages.mark("policy")
                if name := wanted.judge:
                    judgement = await self._judges[name].ask(text, stages.deadline)
                    judgements = {**context.judgements, name: judgement}
                    context = dataclasses.replace(context, judgements=judgements)
                    stages.mark("judge")
                else:
                    context = await self.read(context, text, stages.deadline)
                    stages.mark("encode")
                wanted = deciding.send(context)
        except StopIteration as end:
            stages.mark("policy")
            return end.value, context

    async def read(self, context: RoutingContext, text: str, deadline: float) -> RoutingContext:
        """The context with the encoder's signals for `text`, or with the reason why there are none."""
        if not text:
            return dataclasses.replace(context, fallback=Cause.NO_TEXT)
        try:
            signals = await self._classifier.signals(text, context.language, deadline)
        except EncoderUnavailable as error:
            return dataclasses.replace(context, fallback=error.cause)
        return dataclasses.replace(context, signals=signals)

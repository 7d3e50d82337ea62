"""Runs the shadows of a live decision, at once where they can be, and else later or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.classifier import Classifier
from semroute_extproc.errors import EncoderUnavailable
from semroute_extproc.policy.context import Decision, JudgeWanted, RoutingContext
from semroute_extproc.policy.draw import draw_id, unit_interval
from semroute_extproc.policy.plan import Policy
from semroute_extproc.policy.shadow import Agreement, Shadow, compare
from semroute_extproc.strategies.judge_client import JudgeClient

PASSES_MAX = 32
"""Encoder passes for shadows alone that may be under way; more are left out, and stay undecided."""


class Shadows:
    """The policies beside the live ones."""

    def __init__(
        self,
        settings: Config,
        policies: Mapping[str, Policy],
        judges: Mapping[str, JudgeClient],
        classifier: Classifier,
        on_error: Callable[[str], None],
        tell: Callable[[Shadow], None],
    ) -> None:
        """`tell` takes what is decided after the request has gone; `on_error` as in `Pipeline`."""
        self._config = settings
        self._policies = policies
        self._judges = judges
        self._classifier = classifier
        self._on_error = on_error
        self._tell = tell
        self._passes: set[asyncio.Task[None]] = set()

    def beside(self, name: str, facts: RoutingContext, live: Decision, text: str) -> tuple[Shadow, ...]:
        """What the shadows of the policy `name` say, from what the live decision was made of.

        A shadow that lacks signals or a judgement is undecided, unless the request is in the share that
        is encoded for shadows: then it is left out here, and told when that is done.
        """
        settings = self._config.policies[name]
        if not settings.shadow:
            return ()
        shadows = tuple(self._ask(name, shadow, facts, live) for shadow in settings.shadow)
        undecided = [shadow.shadow for shadow in shadows if shadow.agreement is Agreement.UNDECIDED]
        if not undecided or facts.fallback or not text:
            return shadows
        if (
            unit_interval("shadow", name, draw_id(facts)) >= settings.shadow_share
            or len(self._passes) >= PASSES_MAX
        ):
            return shadows
        pass_ = asyncio.get_running_loop().create_task(self._ask_later(name, undecided, facts, live, text))
        self._passes.add(pass_)
        pass_.add_done_callback(self._passes.discard)
        return tuple(shadow for shadow in shadows if shadow.shadow not in undecided)

    def _ask(self, name: str, shadow: str, facts: RoutingContext, live: Decision) -> Shadow:
        def failed() -> None:
            self._on_error(facts.head.request_id)

        def decide(facts: RoutingContext) -> Decision | None:
            decision = self._policies[shadow].decide(facts)
            return decision if isinstance(decision, Decision) else None

        return compare(name, shadow, decide, facts, live, failed)

    async def _ask_later(
        self, name: str, shadows: list[str], facts: RoutingContext, live: Decision, text: str
    ) -> None:
        deadline = asyncio.get_running_loop().time() + self._config.server.deadline_ms / 1e3
        # Without signals they stay undecided: a shadow has no fallback of its own.
        if facts.signals is None:
            try:
                facts = facts.with_signals(await self._classifier.signals(text, facts.language, deadline))
            except EncoderUnavailable:
                pass
            except Exception:
                self._on_error(facts.head.request_id)
        for shadow in shadows:
            judged = await self._judged(shadow, facts, text, deadline)
            self._tell(self._ask(name, shadow, judged, live))

    async def _judged(self, shadow: str, facts: RoutingContext, text: str, deadline: float) -> RoutingContext:
        """The facts with a judgement, if that is what a shadow wants."""
        try:
            wanted = self._policies[shadow].decide(facts)
        except Exception:
            return facts  # `compare` meets it again, and tells.
        if not isinstance(wanted, JudgeWanted):
            return facts
        return facts.with_judgement(wanted.strategy, await self._judges[wanted.strategy].ask(text, deadline))

"""Runs the shadows of a live decision: at once if they need nothing more, else later or not at all."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

from semroute_extproc.config.models import Config
from semroute_extproc.events import Emit, Failed, Shadowed
from semroute_extproc.pipeline.driver import Driver, Stages
from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import Decision, RoutingContext
from semroute_extproc.policy.draw import draw_id, unit_interval
from semroute_extproc.policy.plan import PolicyPlan
from semroute_extproc.policy.shadow import Agreement, Shadow, compare

PASSES_MAX = 32  # Concurrent encoder passes for shadows alone; beyond that, shadows stay undecided.


class Shadows:
    """The shadows of every policy; a failure in one affects nothing else."""

    def __init__(self, settings: Config, plans: Mapping[str, PolicyPlan], driver: Driver, emit: Emit) -> None:
        self._config, self._plans, self._driver, self._emit = settings, plans, driver, emit
        self._passes: set[asyncio.Task[None]] = set()

    async def of(self, policy: str, context: RoutingContext, live: Decision, text: str) -> tuple[Shadow, ...]:
        """The shadows of a live policy, from the context of its decision; waits for nothing.

        Shadows that lack signals or a judgement are undecided, unless the request is in the share that
        is encoded for shadows: then they are left out and emitted as `Shadowed` later.
        """
        settings = self._config.policies[policy]
        if not settings.shadow:
            return ()
        # The comparison is about the request, not about the conversation's pool.
        context = dataclasses.replace(context, held=None)
        shadows = [await self._ask(policy, name, context, live, text) for name in settings.shadow]
        undecided = [each.shadow for each in shadows if each.agreement is Agreement.UNDECIDED]
        if (
            not undecided
            or context.fallback
            or not text
            or unit_interval("shadow", policy, draw_id(context)) >= settings.shadow_share
            or len(self._passes) >= PASSES_MAX
        ):
            return tuple(shadows)
        pass_ = asyncio.create_task(self._ask_later(policy, undecided, context, live, text))
        self._passes.add(pass_)
        pass_.add_done_callback(self._passes.discard)
        return tuple(each for each in shadows if each.shadow not in undecided)

    async def _ask_later(
        self, policy: str, shadows: Sequence[str], context: RoutingContext, live: Decision, text: str
    ) -> None:
        stages = Stages(self._config.server.deadline_ms)
        try:
            if context.signals is None:
                context = await self._driver.read(context, text, stages.deadline)
        except Exception:
            self._emit(Failed("decision.failed", context.head.request_id))
        for shadow in shadows:
            self._emit(Shadowed(await self._ask(policy, shadow, context, live, text, stages)))

    async def _ask(
        self,
        policy: str,
        shadow: str,
        context: RoutingContext,
        live: Decision,
        text: str,
        stages: Stages | None = None,
    ) -> Shadow:
        """The decision of one shadow; waits for a judge only with `stages`."""
        plan, decision = self._plans[shadow], None
        try:
            if stages is None:
                decision = plan.decide_now(context)
            # A shadow has no fallback: without signals it is undecided.
            elif context.signals is not None:
                decision, _ = await self._driver.decide(plan, context, text, stages)
        except NoCandidate:
            pass
        except Exception:
            self._emit(Failed("decision.failed", context.head.request_id))
            return Shadow(policy, shadow, Agreement.ERROR)
        return compare(policy, shadow, decision, live)

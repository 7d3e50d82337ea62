"""A compiled policy: constraints, then rules, then a strategy among the pools that are left. Pure.

A decision is a generator. It yields what it needs and is sent a context that has it, or, for signals,
the reason why there are none (`fallback`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from semroute_extproc.policy import effort
from semroute_extproc.policy.constraints import candidates
from semroute_extproc.policy.context import (
    Candidates,
    Choice,
    Decision,
    Held,
    RoutingContext,
    Strategy,
    TraceStep,
)
from semroute_extproc.policy.rules import CompiledRule, RuleError
from semroute_extproc.policy.stickiness import holding, keeps
from semroute_extproc.settings.base import Problem
from semroute_extproc.settings.policies import Policy, Target
from semroute_extproc.settings.pools import Pool


@dataclass(frozen=True, slots=True)
class SignalsWanted:
    """The decision needs the encoder's signals."""


@dataclass(frozen=True, slots=True)
class JudgementWanted:
    """The decision needs the judgement of a strategy's judge."""

    strategy: str


Wanted = SignalsWanted | JudgementWanted
Deciding = Generator[Wanted, RoutingContext, Decision]


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """One compiled policy."""

    pools: Mapping[str, Pool]
    default_pool: str
    rules: Sequence[CompiledRule]
    otherwise: Target
    strategies: Mapping[str, Strategy]

    def decide(self, context: RoutingContext) -> Deciding:
        """Decide one request; raises NoCandidate.

        With `context.fallback`, rules that need no signals and hard preferences (quality 0 or 1) still
        hold, and the default pool gets the rest.
        """
        return (yield from _Run(self, context).decide())

    def decide_now(self, context: RoutingContext) -> Decision | None:
        """The decision from what is in `context`; None if that is not enough. Raises NoCandidate."""
        try:
            next(self.decide(context))
        except StopIteration as end:
            decision: Decision = end.value
            return decision
        return None


class _Run:
    """One decision in progress."""

    def __init__(self, plan: PolicyPlan, context: RoutingContext) -> None:
        self._plan, self._context = plan, context
        self._candidates = candidates(plan.pools, plan.default_pool, context)
        excluded = self._candidates.excluded.items()
        self._trace = [TraceStep("constraint", pool, f"needs {why}") for pool, why in excluded]

    def decide(self) -> Deciding:
        for rule in self._plan.rules:
            if rule.needs_signals and not (yield from self._signals()):
                self._note("rule", rule.name, "skipped: no signals")
                continue
            matched, result = rule.evaluate(self._context, self._candidates)
            self._note("rule", rule.name, result)
            if matched:
                return (yield from self._to(rule.target, rule.name))
        return (yield from self._to(self._plan.otherwise))

    def _note(self, what: str, name: str, result: str) -> None:
        self._trace.append(TraceStep(what, name, result))

    def _signals(self) -> Generator[Wanted, RoutingContext, bool]:
        """Whether there are signals; asks for them unless it is known that there are none."""
        if self._context.signals is None and self._context.fallback is None:
            self._context = yield SignalsWanted()
        return self._context.signals is not None

    def _to(self, target: Target, rule: str = "") -> Deciding:
        if effort.needs_signals(target.reasoning):
            yield from self._signals()
        prefix = f"rule {rule}" if rule else ""
        if target.strategy is not None:
            decision = yield from self._by_strategy(target.strategy)
            reason = f"{prefix}: {decision.reason}" if prefix and not decision.fallback else decision.reason
        else:
            assert target.pool is not None
            choice = Choice(target.pool, prefix or f"always {target.pool}")
            pool, reason = _available(choice, self._candidates)
            decision = Decision(pool, reason)
        wanted = None
        if target.reasoning is not None:
            wanted, why = effort.effort_of(target.reasoning, self._context)
            self._note("reasoning", wanted or "unchanged", why)
            if wanted is not None and target.reasoning.bands is not None:
                reason = f"{reason}, reasoning {wanted}"
        return dataclasses.replace(
            decision,
            rule=rule,
            reason=reason,
            reasoning=wanted,
            override=wanted is not None and target.reasoning is not None and target.reasoning.override,
            fallback=self._context.fallback,
            trace=tuple(self._trace),
        )

    def _by_strategy(self, name: str) -> Deciding:
        """The decision of a strategy, unless the conversation's pool is locked or there are no signals."""
        strategy = self._plan.strategies[name]
        held = holding(self._context, name, self._candidates)
        if held is not None and held.lock:
            reason = f"conversation stays in {held.pool}: {held.lock}"
            self._note("controller", "session", reason)
            return Decision(held.pool, reason, strategy=name, session="locked")
        if strategy.needs_signals and not (yield from self._signals()):
            cause = self._context.fallback
            self._note("strategy", name, f"no signals: {cause}")
            if not (self._context.hard_preference and strategy.hard_preferences):
                pool = self._candidates.first_of(self._plan.default_pool)
                return Decision(pool, f"fallback: {cause}", strategy=name, fallback=cause)
        if strategy.wants_judgement(self._context):
            self._context = yield JudgementWanted(name)
        return self._chosen(name, strategy, held)

    def _chosen(self, name: str, strategy: Strategy, held: Held | None) -> Decision:
        """The strategy's choice, against the pools that can answer and the conversation's pool."""
        context = self._context
        judgement = context.judgements.get(name)
        if judgement is not None:
            self._note("judge", name, judgement.result)
        if context.conditions.bias:
            context = dataclasses.replace(context, bias=context.conditions.bias.get(name, 0.0))
        choice = strategy.choose(context, self._candidates)
        pool, reason = _available(choice, self._candidates)
        self._note("strategy", name, f"{pool}: {reason}")
        for controller, how in choice.moved:
            self._note("controller", controller, how)
        if choice.moved:
            reason += f" ({', '.join(f'{controller} {how}' for controller, how in choice.moved)})"
        session = ""
        if held is not None and pool != held.pool:
            session = "kept" if keeps(held, choice) else "moved"
            self._note("controller", "session", f"{session}: conversation was in {held.pool}")
            if session == "kept":
                pool, reason = held.pool, f"conversation stays in {held.pool}: {reason}"
        return Decision(
            pool,
            reason,
            strategy=name,
            score=choice.score,
            threshold=choice.threshold,
            share=choice.share,
            session=session,
            judge=judgement.result if judgement else "",
        )


def _available(choice: Choice, candidates: Candidates) -> tuple[str, str]:
    """The chosen pool, or its replacement if it is no candidate, and the reason."""
    pool = candidates.first_of(choice.pool, *choice.stand_ins)
    if pool == choice.pool:
        return pool, choice.reason
    return pool, f"{choice.reason}, but {choice.pool} lacks {candidates.excluded[choice.pool]}"


def build(
    pools: Mapping[str, Pool],
    default_pool: str,
    policies: Mapping[str, Policy],
    strategies: Mapping[str, Strategy],
) -> tuple[dict[str, PolicyPlan], list[Problem]]:
    """Compile every policy, over compiled strategies; a problem has the place of its condition."""
    plans: dict[str, PolicyPlan] = {}
    problems: list[Problem] = []
    for name, policy in policies.items():
        rules: list[CompiledRule] = []
        for index, rule in enumerate(policy.rules):
            try:
                rules.append(CompiledRule(rule))
            except RuleError as error:
                problems.append(Problem(("policies", name, "rules", index, "when"), str(error)))
        plans[name] = PolicyPlan(pools, default_pool, rules, policy.otherwise, strategies)
    return plans, problems

"""A compiled policy: constraints, then rules, then a strategy among the pools that are left. Pure.

A decision is a generator. It yields what it needs: `SIGNALS`, or the name of a strategy whose judge must
be asked. It is sent a context with the result, or, if there are no signals, with `fallback` set.
"""

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semroute_extproc.policy.constraints import Denied, affordable, candidates
from semroute_extproc.policy.context import Choice, Decision, Held, Lock, RoutingContext, Strategy, TraceStep
from semroute_extproc.policy.cost import COST_MAX
from semroute_extproc.policy.rules import CompiledRule
from semroute_extproc.request.signals import Signals
from semroute_extproc.settings.base import Effort, Problem
from semroute_extproc.settings.policies import Policy, Reasoning, Target
from semroute_extproc.settings.pools import Pool

SIGNALS = ""
Deciding = Generator[str, RoutingContext, Decision]


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """One compiled policy."""

    pools: Mapping[str, Pool]
    default_pool: str
    rules: Sequence[CompiledRule]
    otherwise: Target
    strategies: Mapping[str, Strategy]

    def decide(self, context: RoutingContext) -> Deciding:
        """Decide one request; if `context.fallback` is set, without signals. Raises NoCandidate or Denied."""
        return _Run(self, context).decide()

    def decide_now(self, context: RoutingContext) -> Decision | None:
        """Decide from `context` alone; None if it lacks signals or a judgment. Raises NoCandidate."""
        found = advanced(self.decide(context), None)
        return found if isinstance(found, Decision) else None


def advanced(deciding: Deciding, context: Any) -> str | Decision:
    """What a decision needs next, or its result; `context` is None at its start."""
    try:
        return deciding.send(context)
    except StopIteration as end:
        decision: Decision = end.value
        return decision


class _Run:
    """One decision in progress."""

    def __init__(self, plan: PolicyPlan, context: RoutingContext) -> None:
        self._plan, self._context, self._limited = plan, context, ""
        self._candidates = candidates(plan.pools, plan.default_pool, context)
        self._limit("", "tenant")
        excluded, doubtful = self._candidates.excluded.items(), self._candidates.doubtful.items()
        self._trace = [TraceStep("constraint", pool, f"needs {why}") for pool, why in excluded]
        self._trace += [TraceStep("constraint", pool, f"may need {why}") for pool, why in doubtful]

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

    def _limit(self, name: str, kind: str) -> None:
        """Apply a limit to the candidates."""
        before = self._candidates
        self._candidates = affordable(before, name, self._context)
        self._limited = self._limited or (kind if self._candidates.pools != before.pools else "")

    def _note(self, what: str, name: str, result: str) -> None:
        self._trace.append(TraceStep(what, name, result))

    def _signals(self) -> Generator[str, RoutingContext, bool]:
        """Whether there are signals; requests them unless `fallback` says that there are none."""
        if self._context.signals is None and self._context.fallback is None:
            self._context = yield SIGNALS
        return self._context.signals is not None

    def _to(self, target: Target, rule: str = "") -> Deciding:
        if target.deny is not None:
            raise Denied(target.deny)
        reasoning = target.reasoning
        if reasoning is not None and reasoning.bands is not None:
            yield from self._signals()
        if target.strategy is not None:
            decision = yield from self._by_strategy(target.strategy)
            reason = f"rule {rule}: {decision.reason}" if rule and not decision.fallback else decision.reason
        else:
            assert target.pool is not None
            choice = Choice(target.pool, f"rule {rule}" if rule else f"always {target.pool}")
            doubtful = choice.pool in self._candidates.doubtful
            pool, reason = (choice.pool, choice.reason) if doubtful else self._available(choice)
            decision = Decision(pool, reason)
        effort: Effort | None = None
        if reasoning is not None:
            effort, why = _effort(reasoning, self._context.signals)
            self._note("reasoning", effort or "unchanged", why)
            if effort is not None and reasoning.bands is not None:
                reason = f"{reason}, reasoning {effort}"
        if (signals := self._context.signals) is not None and signals.remote:
            reason += f" (local encoder: {signals.remote})"
        return dataclasses.replace(
            decision,
            rule=rule,
            reason=reason,
            reasoning=effort,
            override=effort is not None and reasoning is not None and reasoning.override,
            fallback=self._context.fallback,
            limited=self._limited,
            others=tuple(name for name in self._candidates.untried if name != decision.pool),
            trace=tuple(self._trace),
        )

    def _by_strategy(self, name: str) -> Deciding:
        """Decide by a strategy, unless the conversation's pool is locked or signals are missing."""
        strategy = self._plan.strategies[name]
        self._limit(name, "strategy")
        held = self._held(name)
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
        if strategy.wants_judgment(self._context):
            self._context = yield name
        return self._chosen(name, strategy, held)

    def _held(self, strategy: str) -> Held | None:
        """The conversation's pool, if it may override a choice of `strategy`.

        That pool holds the prefix cache, the work of a tool loop, or the turns behind a
        `previous_response_id`. Only the last overrides a hard preference: another pool would fail.
        """
        held, possible = self._context.held, self._candidates
        if held is None or (held.strategies is not None and strategy not in held.strategies):
            return None
        if held.lock is Lock.STATEFUL:
            return held if held.pool in possible.pools or held.pool in possible.doubtful else None
        return held if held.pool in possible.pools and not self._context.hard_preference else None

    def _chosen(self, name: str, strategy: Strategy, held: Held | None) -> Decision:
        """Apply the strategy's choice, subject to the candidates and the conversation's pool."""
        context = self._context
        judge = context.judgments[name].result if name in context.judgments else ""
        if judge:
            self._note("judge", name, judge)
        if (now := context.conditions).bias or now.traffic:
            bias, traffic = now.bias.get(name, 0.0), now.traffic.get(name)
            context = dataclasses.replace(context, bias=bias, traffic=traffic)
        choice = strategy.choose(context, self._candidates)
        pool, reason = self._available(choice)
        self._note("strategy", name, f"{pool}: {reason}")
        if choice.source:
            self._note("threshold", name, choice.source)
        for controller, how in choice.moved:
            self._note("controller", controller, how)
        if choice.moved:
            reason += f" ({', '.join(f'{controller} {how}' for controller, how in choice.moved)})"
        session = ""
        if held is not None and pool != held.pool:
            # A conversation moves only up, and only if the score exceeds the threshold by the margin.
            session = "kept" if choice.rise is None or choice.rise < held.margin else "moved"
            self._note("controller", "session", f"{session}: conversation was in {held.pool}")
            if session == "kept":
                pool, reason = held.pool, f"conversation stays in {held.pool}: {reason}"
        return Decision(pool, reason, strategy=name, choice=choice, session=session, judge=judge)

    def _available(self, choice: Choice) -> tuple[str, str]:
        """The chosen pool, or its replacement if it is no candidate, and the reason."""
        pool = self._candidates.first_of(choice.pool, *choice.stand_ins)
        if pool == choice.pool:
            return pool, choice.reason
        if may := self._candidates.doubtful.get(choice.pool):
            return pool, f"{choice.reason}, but {choice.pool} may lack {may}"
        return pool, f"{choice.reason}, but {choice.pool} lacks {self._candidates.excluded[choice.pool]}"


def _effort(reasoning: Reasoning, signals: Signals | None) -> tuple[Effort | None, str]:
    """The effort to ask for, and why, in words.

    The vLLM Semantic Router (arXiv 2510.08731) enables reasoning by domain; this router uses the
    calibrated difficulty. Without signals, and for unknown text, bands give None, because the model's
    default is better than a guess.
    """
    if reasoning.bands is None:
        return reasoning.effort, "as configured"
    if signals is None:
        return None, "no signals, no effort"
    if signals.unknown:
        return None, "the text is unknown, no effort"
    found = next(band for band in reasoning.bands if band.below is None or signals.difficulty < band.below)
    place = "is in the last band" if found.below is None else f"< {found.below:.2f}"
    return found.effort, f"difficulty {signals.difficulty:.2f} {place}"


def build(
    pools: Mapping[str, Pool],
    default_pool: str,
    policies: Mapping[str, Policy],
    strategies: Mapping[str, Strategy],
) -> tuple[dict[str, PolicyPlan], list[Problem]]:
    """Compile every policy with its compiled strategies; a problem has its condition's location."""
    plans: dict[str, PolicyPlan] = {}
    problems: list[Problem] = []
    for name, policy in policies.items():
        rules: list[CompiledRule] = []
        for index, rule in enumerate(policy.rules):
            try:
                rules.append(CompiledRule(rule))
                if sum(each.cost for each in rules) > COST_MAX:
                    raise ValueError(f"with it, the conditions of the policy take over {COST_MAX / 1e6} s")
            except ValueError as error:
                problems.append(Problem(("policies", name, "rules", index, "when"), str(error)))
        plans[name] = PolicyPlan(pools, default_pool, rules, policy.otherwise, strategies)
    return plans, problems

"""Policy: constraints, then rules, then the strategy among what is left.

Pure.

    decision       what a policy looks at and what it gives
    constraints    which pools could answer at all
    rules          CEL conditions
    strategies     from settings to strategies
    pair, cutoff   weak or strong by one score; what these share:
    threshold        by difficulty
    similarity       by labelled prompts like this one
    factorization    by vectors of models and prompts
    judge          weak or strong by the score of a model that the pipeline asks
    clusters       the least error plus price by profiles, any number of pools
    intent         experts by domain or task, a generalist for the unsure
    weighted       fixed, weighted and canaries
    effort         reasoning effort by difficulty
    session        a conversation keeps its pool
    shadow         policies beside the live one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from semroute_extproc.policy import effort
from semroute_extproc.policy.constraints import candidates as candidates_of
from semroute_extproc.policy.context import (
    Candidates,
    Choice,
    Decision,
    Held,
    JudgeWanted,
    RoutingContext,
    Strategy,
    TraceStep,
)
from semroute_extproc.policy.rules import CompiledRule, RuleError
from semroute_extproc.policy.stickiness import holding, keeps
from semroute_extproc.settings.base import Problem
from semroute_extproc.settings.policies import Policy as PolicySettings
from semroute_extproc.settings.policies import Reasoning, Target
from semroute_extproc.settings.pools import Pool

Tried = dict[str, tuple[bool, str]]
"""Rule to whether it applied, and in words why or why not."""


class Policy:
    """One compiled policy."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        default_pool: str,
        rules: list[CompiledRule],
        otherwise: Target,
        strategies: Mapping[str, Strategy],
    ) -> None:
        self._pools = pools
        self._default_pool = default_pool
        self._rules = rules
        self._otherwise = otherwise
        self._strategies = strategies

    def decide(self, facts: RoutingContext, tried: Tried | None = None) -> Decision | JudgeWanted | None:
        """The decision; None if it takes signals that `facts` does not have yet, JudgeWanted if it takes
        a judgement.

        With `facts.fallback` set there is always a decision: rules that need no signals still
        hold, so do promises (a quality of 0 or 1), and what else would have needed them goes to the
        default pool. `tried` keeps what became
        of those rules for the second look at the same request, once its signals are there.
        Raises NoCandidate.
        """
        tried = {} if tried is None else tried
        candidates = candidates_of(self._pools, self._default_pool, facts)
        trace = [TraceStep("constraint", pool, f"needs {why}") for pool, why in candidates.excluded.items()]
        for compiled in self._rules:
            if compiled.needs_signals and facts.signals is None:
                if not facts.fallback:
                    return None
                trace.append(TraceStep("rule", compiled.rule.name, "skipped: no signals"))
                continue
            verdict = None if compiled.needs_signals else tried.get(compiled.rule.name)
            if verdict is None:
                verdict = tried[compiled.rule.name] = _evaluate(compiled, facts, candidates)
            matched, result = verdict
            trace.append(TraceStep("rule", compiled.rule.name, result))
            if matched:
                return self._to(compiled.rule, facts, candidates, trace, rule=compiled.rule.name)
        return self._to(self._otherwise, facts, candidates, trace)

    def _to(
        self,
        target: Target,
        facts: RoutingContext,
        candidates: Candidates,
        trace: list[TraceStep],
        rule: str = "",
    ) -> Decision | JudgeWanted | None:
        if effort.needs_signals(target.reasoning) and facts.signals is None and not facts.fallback:
            return None
        prefix = f"rule {rule}" if rule else ""
        if target.pool is not None:
            pool, reason = _available(Choice(target.pool, prefix or f"always {target.pool}"), candidates)
            decision = Decision(pool, reason)
        else:
            assert target.strategy is not None
            chosen = self._by_strategy(target.strategy, facts, candidates, trace)
            if not isinstance(chosen, Decision):
                return chosen
            decision = chosen
            if prefix and not decision.fallback:
                decision = dataclasses.replace(decision, reason=f"{prefix}: {decision.reason}")
        if target.reasoning is not None:
            decision = _with_reasoning(target.reasoning, facts, decision, trace)
        return dataclasses.replace(decision, rule=rule, fallback=facts.fallback, trace=tuple(trace))

    def _by_strategy(
        self, name: str, facts: RoutingContext, candidates: Candidates, trace: list[TraceStep]
    ) -> Decision | JudgeWanted | None:
        """What a strategy decides: a canary draws it, a conversation's pool may stand in its way."""
        strategy, canary = self._strategies[name], ""
        held = holding(facts, name, canary, candidates) if facts.held is not None else None
        if held is not None and held.lock:
            reason = f"conversation stays in {held.pool}: {held.lock}"
            trace.append(TraceStep("controller", "session", reason))
            return Decision(held.pool, reason, strategy=name, session="locked", canary=canary)
        if strategy.needs_signals and facts.signals is None:
            if not facts.fallback:
                return None
            trace.append(TraceStep("strategy", name, f"no signals: {facts.fallback}"))
            if not (facts.hard_preference and strategy.hard_preferences):
                return self._fallback(name, facts, candidates, canary)
        if strategy.wants_judgement(facts):
            return JudgeWanted(name)
        if facts.conditions.bias:
            facts = dataclasses.replace(facts, bias=facts.conditions.bias.get(name, 0.0))
        return self._chosen(name, strategy, facts, candidates, held, canary, trace)

    def _fallback(self, name: str, facts: RoutingContext, candidates: Candidates, canary: str) -> Decision:
        pool, reason = candidates.first_of(self._default_pool), f"fallback: {facts.fallback}"
        return Decision(pool, reason, strategy=name, fallback=facts.fallback, canary=canary)

    def _chosen(
        self,
        name: str,
        strategy: Strategy,
        facts: RoutingContext,
        candidates: Candidates,
        held: Held | None,
        canary: str,
        trace: list[TraceStep],
    ) -> Decision:
        judgement = facts.judgements.get(name)
        if judgement is not None:
            trace.append(TraceStep("judge", name, judgement.result))
        choice = strategy.choose(facts, candidates)
        pool, reason = _available(choice, candidates)
        trace.append(TraceStep("strategy", name, f"{pool}: {reason}"))
        trace.extend(TraceStep("controller", who, how) for who, how in choice.moved)
        if choice.moved:
            reason += f" ({', '.join(f'{who} {how}' for who, how in choice.moved)})"
        session = ""
        if held is not None and pool != held.pool:
            session = "kept" if keeps(held, choice) else "moved"
            trace.append(TraceStep("controller", "session", f"{session}: conversation was in {held.pool}"))
            if session == "kept":
                pool, reason = held.pool, f"conversation stays in {held.pool}: {reason}"
        if canary:
            reason = f"canary {name}: {reason}"
        return Decision(
            pool,
            reason,
            strategy=name,
            score=choice.score,
            threshold=choice.threshold,
            share=choice.share,
            session=session,
            canary=canary,
            judge=judgement.result if judgement else "",
        )


def _with_reasoning(
    reasoning: Reasoning, facts: RoutingContext, decision: Decision, trace: list[TraceStep]
) -> Decision:
    wanted, why = effort.effort_of(reasoning, facts)
    trace.append(TraceStep("reasoning", wanted or "unchanged", why))
    if wanted is None:
        return decision
    reason = f"{decision.reason}, reasoning {wanted}" if reasoning.bands is not None else decision.reason
    return dataclasses.replace(decision, reason=reason, reasoning=wanted, override=reasoning.override)


def _available(choice: Choice, candidates: Candidates) -> tuple[str, str]:
    """The pool of a choice or its stand-in, and the reason, which says so if it is a stand-in."""
    pool = candidates.first_of(choice.pool, *choice.stand_ins)
    if pool == choice.pool:
        return pool, choice.reason
    return pool, f"{choice.reason}, but {choice.pool} lacks {candidates.excluded[choice.pool]}"


def _evaluate(compiled: CompiledRule, facts: RoutingContext, candidates: Candidates) -> tuple[bool, str]:
    """Whether the rule applies, and in words why or why not."""
    try:
        matched = compiled.matches(facts)
    except ValueError as error:
        return False, f"does not apply: {error}"
    if not matched:
        return False, "no match"
    target = compiled.rule.pool
    if target is not None and target in candidates.excluded:
        return False, f"matched, but {target} could not answer: needs {candidates.excluded[target]}"
    return True, "matched"


def build(
    pools: Mapping[str, Pool],
    default_pool: str,
    policies: Mapping[str, PolicySettings],
    strategies: Mapping[str, Strategy],
) -> tuple[dict[str, Policy], list[Problem]]:
    """Compile every policy; problems come with their places."""
    found: dict[str, Policy] = {}
    problems: list[Problem] = []
    for name, policy in policies.items():
        rules: list[CompiledRule] = []
        for index, rule in enumerate(policy.rules):
            try:
                rules.append(CompiledRule(rule))
            except RuleError as error:
                problems.append(Problem(("policies", name, "rules", index, "when"), str(error)))
        found[name] = Policy(pools, default_pool, rules, policy.otherwise, strategies)
    return found, problems

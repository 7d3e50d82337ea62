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
    weighted       fixed and weighted
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from semroute_extproc import config as cfg
from semroute_extproc.bundle import Manifest
from semroute_extproc.policy.constraints import candidates as candidates_of
from semroute_extproc.policy.decision import Candidates, Choice, Decision, Facts, JudgeWanted, TraceStep
from semroute_extproc.policy.judge import Judge
from semroute_extproc.policy.rules import CompiledRule, RuleError
from semroute_extproc.policy.strategies import NO_MATERIAL, Material, Strategy, compile_strategies


class Policy:
    """One compiled policy."""

    def __init__(
        self,
        config: cfg.Config,
        rules: list[CompiledRule],
        otherwise: cfg.Target,
        strategies: Mapping[str, Strategy],
    ) -> None:
        self._pools = config.pools
        self._default_pool = config.default_pool
        self._rules = rules
        self._otherwise = otherwise
        self._strategies = strategies

    def decide(self, facts: Facts) -> Decision | JudgeWanted | None:
        """The decision; None if it takes signals that `facts` does not have yet, JudgeWanted if it takes
        a judgement.

        With `facts.fallback` set there is always a decision: rules that need no signals still
        hold, and what would have needed them goes to the default pool. Raises NoCandidate.
        """
        candidates = candidates_of(self._pools, self._default_pool, facts)
        trace = [TraceStep("constraint", pool, f"needs {why}") for pool, why in candidates.excluded.items()]
        for compiled in self._rules:
            if compiled.needs_signals and facts.signals is None:
                if not facts.fallback:
                    return None
                trace.append(TraceStep("rule", compiled.rule.name, "skipped: no signals"))
                continue
            matched, result = _evaluate(compiled, facts, candidates)
            trace.append(TraceStep("rule", compiled.rule.name, result))
            if matched:
                return self._to(compiled.rule, facts, candidates, trace, rule=compiled.rule.name)
        return self._to(self._otherwise, facts, candidates, trace)

    def _to(
        self, target: cfg.Target, facts: Facts, candidates: Candidates, trace: list[TraceStep], rule: str = ""
    ) -> Decision | JudgeWanted | None:
        decision = Decision("", "", rule=rule, reasoning=target.reasoning, fallback=facts.fallback)
        prefix = f"rule {rule}" if rule else ""
        if target.pool is not None:
            pool, reason = _available(Choice(target.pool, prefix or f"always {target.pool}"), candidates)
            return dataclasses.replace(decision, pool=pool, reason=reason, trace=tuple(trace))
        assert target.strategy is not None
        strategy = self._strategies[target.strategy]
        if strategy.needs_signals and facts.signals is None:
            if not facts.fallback:
                return None
            trace.append(TraceStep("strategy", target.strategy, f"no signals: {facts.fallback}"))
            return dataclasses.replace(
                decision,
                pool=candidates.first_of(self._default_pool),
                reason=f"fallback: {facts.fallback}",
                strategy=target.strategy,
                trace=tuple(trace),
            )
        if isinstance(strategy, Judge) and strategy.wants(facts):
            return JudgeWanted(target.strategy)
        judgement = facts.judgements.get(target.strategy)
        if judgement is not None:
            trace.append(TraceStep("judge", target.strategy, judgement.result))
        choice = strategy.choose(facts, candidates)
        pool, reason = _available(choice, candidates)
        trace.append(TraceStep("strategy", target.strategy, f"{pool}: {reason}"))
        return dataclasses.replace(
            decision,
            pool=pool,
            reason=f"{prefix}: {reason}" if prefix else reason,
            strategy=target.strategy,
            score=choice.score,
            threshold=choice.threshold,
            judge=judgement.result if judgement else "",
            trace=tuple(trace),
        )


def _available(choice: Choice, candidates: Candidates) -> tuple[str, str]:
    """The pool of a choice or its stand-in, and the reason, which says so if it is a stand-in."""
    pool = candidates.first_of(choice.pool, *choice.stand_ins)
    if pool == choice.pool:
        return pool, choice.reason
    return pool, f"{choice.reason}, but {choice.pool} lacks {candidates.excluded[choice.pool]}"


def _evaluate(compiled: CompiledRule, facts: Facts, candidates: Candidates) -> tuple[bool, str]:
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
    config: cfg.Config, manifest: Manifest, material: Material = NO_MATERIAL
) -> tuple[dict[str, Policy], list[cfg.Problem]]:
    """Compile every policy of `config` against a bundle; problems come with their places.

    `material` is what the strategies' files hold; see `strategy_files`.
    """
    strategies, problems = compile_strategies(config, manifest, material)
    policies: dict[str, Policy] = {}
    for name, policy in config.policies.items():
        rules: list[CompiledRule] = []
        for index, rule in enumerate(policy.rules):
            try:
                rules.append(CompiledRule(rule))
            except RuleError as error:
                problems.append(cfg.Problem(("policies", name, "rules", index, "when"), str(error)))
        policies[name] = Policy(config, rules, policy.otherwise, strategies)
    return policies, problems

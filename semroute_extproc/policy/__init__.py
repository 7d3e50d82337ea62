"""Policy: constraints, then rules, then the strategy among what is left.

Pure.

    decision     what a policy looks at and what it gives
    constraints  which pools could answer at all
    rules        CEL conditions
    threshold    weak or strong by difficulty
    intent       experts by domain or task, a generalist for the unsure
    weighted     fixed and weighted
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from semroute_extproc import config as cfg
from semroute_extproc.bundle import Manifest
from semroute_extproc.policy.constraints import candidates as candidates_of
from semroute_extproc.policy.decision import Candidates, Choice, Decision, Facts, TraceStep
from semroute_extproc.policy.intent import Intent
from semroute_extproc.policy.rules import CompiledRule, RuleError
from semroute_extproc.policy.threshold import Threshold
from semroute_extproc.policy.weighted import Fixed, Weighted


class Strategy(Protocol):
    """Picks one of the pools that could answer."""

    needs_signals: bool

    def choose(self, facts: Facts, candidates: Candidates) -> Choice:
        """The pool and why; `facts.signals` is there if `needs_signals`."""
        ...


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

    def decide(self, facts: Facts) -> Decision | None:
        """The decision, or None if it takes signals that `facts` does not have yet.

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
    ) -> Decision | None:
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


def build(config: cfg.Config, manifest: Manifest) -> tuple[dict[str, Policy], list[cfg.Problem]]:
    """Compile every policy of `config` against a bundle; problems come with their places."""
    problems: list[cfg.Problem] = []
    strategies = {
        name: _strategy(name, settings, manifest, problems) for name, settings in config.strategies.items()
    }
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


def _strategy(name: str, settings: cfg.Strategy, manifest: Manifest, problems: list[cfg.Problem]) -> Strategy:
    match settings:
        case cfg.ThresholdStrategy():
            return Threshold(settings, manifest.difficulty)
        case cfg.IntentStrategy():
            head = manifest.task if settings.by == "task" else manifest.domain
            labels = head.labels if head is not None else ()
            if not labels:
                problems.append(
                    cfg.Problem(
                        ("strategies", name, "by"), f"bundle {manifest.name} has no {settings.by} head"
                    )
                )
            for label in settings.experts:
                if labels and label not in labels:
                    hint = cfg.did_you_mean(label, labels)
                    problems.append(
                        cfg.Problem(
                            ("strategies", name, "experts", label),
                            f"bundle {manifest.name} has no {settings.by} {label!r}{hint}",
                        )
                    )
            return Intent(settings)
        case cfg.FixedStrategy():
            return Fixed(settings)
        case cfg.WeightedStrategy():
            return Weighted(name, settings)

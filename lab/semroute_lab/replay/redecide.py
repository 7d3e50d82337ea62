"""Decides logged requests again, by the sidecar's own policies, from what the log says about them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from semroute_extproc.config.models import Config
from semroute_extproc.config.source import Loaded
from semroute_extproc.encoder.bundle import DEFAULT
from semroute_extproc.encoder.cuda import open_each
from semroute_extproc.outcome import Cause
from semroute_extproc.pipeline.pipeline import policy_of, routed
from semroute_extproc.policy.constraints import NoCandidate
from semroute_extproc.policy.context import (
    Candidates,
    Choice,
    Conditions,
    Decision,
    Held,
    Judgment,
    Lock,
    RoutingContext,
    Strategy,
)
from semroute_extproc.policy.plan import SIGNALS
from semroute_extproc.policy.rules import READ, TENANT_HEADER, CompiledRule
from semroute_extproc.request.signals import Signals
from semroute_extproc.request.view import Api, RequestHead, RequestView, Turn
from semroute_extproc.serve import build
from semroute_extproc.serve.offline import Scorer
from semroute_extproc.settings.names import Names
from semroute_extproc.settings.policies import Rule
from semroute_extproc.state.live import LiveScores
from semroute_extproc.strategies.pair import Pair
from semroute_extproc.strategies.weighted import Weighted, WeightedSettings
from semroute_extproc.telemetry.record import FACTS
from semroute_lab.common.decisions import Record, signals_of_record

TRADE_OFF = {"weak", "strong", "strong_share", "threshold", "max_quality_drop", "calibration"}
TRADE_OFF |= {"follow_traffic", "on_unknown"}
"""Settings of a pair that do not change its score."""

_HEADER = re.compile(
    r"""request\.headers\s*(?:\[\s*["']([^"'\\]+)["']\s*\]|\.(\w+)\b(?!\s*\())"""
    r"""|["']([^"'\\]+)["']\s+in\s+request\.headers\b"""
)
"""A header that a condition names."""


class NotLogged(Exception):
    """The log lacks something that the decision needs; the message names it."""


@dataclass(frozen=True, slots=True)
class LoggedContext(RoutingContext):
    """The context of a record."""

    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class FixedScores:
    """Stands for `LiveScores` with the threshold that was logged, whatever the share."""

    scores: list[float]
    bias = live = 0


def _fact(name: str) -> Callable[[Any], Any]:
    def read(context: LoggedContext) -> Any:
        if name not in context.record["facts"]:
            raise NotLogged(f"the fact {name}")
        return context.record["facts"][name]

    return read


def _text(name: str, otherwise: Any) -> Callable[[Any], Any]:
    def read(context: LoggedContext) -> Any:
        if "prompt" not in context.record:
            raise NotLogged("text (decision_log.prompts)")
        return context.record.get(name, otherwise)

    return read


class LoggedRule(CompiledRule):
    """A rule that reads the facts of a record."""

    readers = {**READ, **{name: _fact(name) for name in FACTS}, "user": _text("user", "")} | {
        "text": _text("prompt", ""),
        "metadata": _text("metadata", {}),
    }

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        names = {next(filter(None, groups)) for groups in _HEADER.findall(rule.when)}
        plain = len(_HEADER.findall(rule.when)) == rule.when.count("request.headers")
        self._headers = names if plain else {*names, "*"}
        if "tenant" in self._work_facts:
            self._headers.add(TENANT_HEADER)

    def evaluate(self, context: RoutingContext, candidates: Candidates) -> tuple[bool, str]:
        """As the base class; raises NotLogged for a header that is not in the log."""
        assert isinstance(context, LoggedContext)
        if missing := self._headers - context.record.get("headers", {}).keys():
            raise NotLogged(f"the header {min(missing)} (decision_log.headers)")
        return super().evaluate(context, candidates)


class Embedded(Strategy):
    """A strategy with an artifact, which reads the embedding."""

    def __init__(self, name: str, inner: Strategy, same_score: bool) -> None:
        """With `same_score`, a score that was logged for the strategy replaces the embedding."""
        self._inner, self._same = inner, isinstance(inner, Pair) and same_score
        self.needs_signals, self.hard_preferences = inner.needs_signals, inner.hard_preferences
        self.name, self.follows = name, inner.follows
        if isinstance(inner, Pair):
            own = inner.score
            inner.score = lambda signals: own(signals) if (had := self._had(signals)) is None else had

    def _had(self, signals: Signals) -> float | None:
        """The logged score, if it is that of the same strategy."""
        record: Mapping[str, Any] = getattr(signals, "record", {})
        known = self._same and record.get("trusted") and record.get("strategy") == self.name
        return record.get("score") if known else None

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """As the strategy itself; raises NotLogged without an embedding."""
        signals = context.signals
        if signals is not None and signals.neighbors is None and self._had(signals) is None:
            raise NotLogged("the embedding (decision_log.embedding)")
        return self._inner.choose(context, candidates)


class Redrawn(Strategy):
    """A draw that keeps the logged pool if its probability is the same."""

    needs_signals = hard_preferences = False

    def __init__(self, name: str, inner: Weighted, settings: WeightedSettings) -> None:
        self._name, self._inner, self._weights = name, inner, settings.weights

    def choose(self, context: RoutingContext, candidates: Candidates) -> Choice:
        """The logged pool, or a new draw by request id."""
        assert isinstance(context, LoggedContext)
        choice, record = self._inner.choose(context, candidates), context.record
        possible = {pool: weight for pool, weight in self._weights.items() if pool in candidates.pools}
        now = possible.get(record["pool"], 0.0) / (sum(possible.values()) or 1.0)
        if record.get("strategy") == self._name and abs(now - record.get("propensity", -1.0)) < 1e-9:
            return dataclasses.replace(choice, pool=record["pool"], propensity=now)
        return choice


class Redecider:
    """One configuration, ready to decide the records of a log."""

    def __init__(self, loaded: Loaded, old: Loaded | None = None) -> None:
        """`old` is the configuration that made the log, if it is known; raises ConfigError."""
        self.config, self._sha256, self._trusted = loaded.config, loaded.sha256[:12], old is not None
        config = self.config
        self._bundles = build.load_bundles(config)
        self._revisions = {each.revision for each in self._bundles.values()}
        plans = build.make_policies(loaded, self._bundles[DEFAULT])
        before, pools = (old or loaded).config, config.pools == (old or loaded).config.pools
        self._unchanged = {
            name for name, each in config.strategies.items() if pools and before.strategies.get(name) == each
        }
        compiled = next(iter(plans.values())).strategies if plans else {}
        strategies = {name: self._adapted(name, each, before) for name, each in compiled.items()}
        rules = {name: [*map(LoggedRule, config.policies[name].rules)] for name in plans}
        self._plans = {
            name: dataclasses.replace(plan, rules=rules[name], strategies=strategies)
            for name, plan in plans.items()
        }
        self._embeds = any(isinstance(each, Embedded) for each in strategies.values())
        self._traffic = {name: LiveScores(*each.follows) for name, each in strategies.items() if each.follows}
        self._names = Names(config.models, config.policies, config.pools, config.default_pool)
        self._routed = routed(config)

    def _adapted(self, name: str, strategy: Strategy, before: Config) -> Strategy:
        settings = self.config.strategies[name]
        if isinstance(strategy, Weighted) and isinstance(settings, WeightedSettings):
            return Redrawn(name, strategy, settings)
        if not hasattr(settings, "artifact"):
            return strategy
        own, other = (
            each and each.model_dump(exclude=TRADE_OFF) for each in (settings, before.strategies.get(name))
        )
        return Embedded(name, strategy, own == other)

    @cached_property
    def _scorer(self) -> Scorer:
        models = open_each(self._bundles, "cpu")
        return Scorer(models.pop(DEFAULT), models)

    def decide(self, record: Record) -> Decision | None:
        """The decision now, None if a policy refuses the request; raises NotLogged."""
        record["trusted"] = self._trusted or record.get("config") == self._sha256
        context = self._context(record)
        named = self._names.find(record["facts"]["model"])
        if named is None:
            return Decision(self.config.default_pool, "unknown model")
        if (virtual := self._routed.get(named)) is None:
            return Decision(named.pool, "named model")
        policy = policy_of(named.model, virtual, context) if virtual.canary else virtual.policy
        logged = record.get("policy", "")
        if abs(virtual.shares.get(logged, -1.0) - record.get("policy_propensity", -2.0)) < 1e-9:
            policy = logged
        try:
            deciding = self._plans[policy].decide(context)
            wanted = next(deciding)
            while True:
                if wanted != SIGNALS:
                    raise NotLogged(f"the answer of judge {wanted}")
                if not record.get("prompt"):
                    raise NotLogged("signals of this bundle and prompts (decision_log.prompts)")
                context = dataclasses.replace(context, signals=self._scorer.score(record["prompt"]))
                wanted = deciding.send(context)
        except StopIteration as end:
            decision: Decision = end.value
        except NoCandidate:
            return None
        sample = decision.choice.sample if decision.choice else None
        traffic = self._traffic.get(decision.strategy)
        if sample is not None and traffic is not None and not context.tried:
            traffic.learn(*sample)
        return dataclasses.replace(decision, canary=policy)

    def _context(self, record: Record) -> LoggedContext:
        facts, strategy = record["facts"], record.get("strategy", "")
        headers = {name: value for name, value in record.get("headers", {}).items() if value is not None}
        headers["x-request-id"] = record.get("request_id", "")
        head = RequestHead(record.get("method", ""), record.get("path", ""), headers)
        given = {name: facts[name] for name in ("images", "audio", "video", "files", "tools", "foreign")}
        limit = facts["max_output_tokens"] or None
        turns = (Turn("user", record.get("prompt", "")),)
        view = RequestView(Api(facts["api"]), facts["model"], turns, max_output_tokens=limit, **given)
        signals = signals_of_record(record)
        if signals is not None and signals.revision not in self._revisions:
            signals = None
        elif self._embeds and signals is not None and signals.neighbors is None and "prompt" in record:
            signals = None  # Read again, for the embedding.
        judged = record.get("judge", "")
        judgment = Judgment(record.get("score") if judged in ("ok", "cache") else None, judged)
        pressure, load = record.get("pressure", {}), self.config.controllers.load
        unchanged = self._unchanged if record["trusted"] else set[str]()
        fixed = strategy in unchanged and strategy in self._traffic and "threshold" in record
        traffic: dict[str, Any] = dict(self._traffic)
        if fixed:
            traffic[strategy] = FixedScores([record["threshold"]])
        bias = {name: each for name, each in record.get("bias", {}).items() if name in unchanged}
        limits = (load.floor, load.ceiling) if load else (0.0, None)
        failing = record.get("failing", {})
        state = Conditions(pressure if load else {}, bias, traffic, *limits, failing)
        return LoggedContext(
            head,
            view,
            record.get("language", ""),
            record["prompt_tokens"],
            record.get("prompt", ""),
            record.get("quality"),
            signals=signals,
            fallback=Cause(record["cause"]) if record["kind"] == "fallback" else None,
            conditions=state,
            judgments={strategy: judgment} if judged else {},
            held=self._held(record, fixed),
            tried=record.get("failed_pools", {}),
            unread=record.get("unread", False),
            bounds=tuple(record["bounds"]) if "bounds" in record else None,
            counted={name: tuple(each) for name, each in record.get("counted", {}).items()},
            record=record,
        )

    def _held(self, record: Record, fixed: bool) -> Held | None:
        """The conversation's pool; where the threshold is the logged one, so is what it decided."""
        held, settings = record.get("held"), self.config.controllers.session
        if held is None or settings is None or held["pool"] not in self.config.pools:
            return None
        margin = 2.0 * (record.get("session") == "kept") if fixed else settings.margin
        return Held(held["pool"], Lock(held["lock"]), margin, settings.strategies)

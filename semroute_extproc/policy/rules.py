"""Rules: a CEL condition over the request and its signals, and where a match goes. Pure.

A condition is compiled once and knows which facts it reads; without signal facts it needs no encoder.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import cel
import msgspec

from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.policy.cost import COST_MAX, MACROS, microseconds
from semroute_extproc.request import conversation
from semroute_extproc.settings.base import did_you_mean
from semroute_extproc.settings.policies import Rule

TENANT_HEADER = "x-semroute-tenant"

_FACTS = msgspec.toml.decode(Path(__file__).with_name("facts.toml").read_bytes())
REQUEST_FACTS, WORK_FACTS, SIGNAL_FACTS = (_FACTS[of] for of in ("request", "work", "signals"))
"""Fact to its meaning: of the request, of its member `request` if a condition names it, of the signals."""

_ATTRIBUTES = {field.name for field in fields(RoutingContext)}
READ: dict[str, Callable[[RoutingContext], Any]] = {
    name: attrgetter(name if name in _ATTRIBUTES else f"view.{name}")
    for name in (*REQUEST_FACTS, *WORK_FACTS)
}
READ |= {
    "api": lambda c: str(c.view.api),
    "turns": lambda c: len(c.view.turns),
    "max_output_tokens": lambda c: c.view.max_output_tokens or 0,
    "quality": lambda c: -1.0 if c.quality is None else c.quality,
    "request": lambda c: {"headers": c.head.headers, "path": c.head.path, "method": c.head.method},
    "tenant": lambda c: c.head.headers.get(TENANT_HEADER, ""),
    "approval": lambda c: conversation.approval(c.view.turns),
    "reask": lambda c: conversation.reask(c.view.turns),
    "loop_depth": lambda c: len(conversation.tool_results(c.view.turns)),
    "tool_errors": lambda c: len(conversation.tool_errors(c.view.turns)),
    "repeated_errors": lambda c: conversation.repeated_errors(c.view.turns),
    "failing_tests": lambda c: conversation.failing_tests(c.view.turns),
}
OF_HEAD = ("api", "model", "quality", "request", "tenant")  # known even if the body cannot be read
OF_KNOWN_TEXT = ("domain", "domain_probs", "domain_entropy", "task", "task_probs", "difficulty")
"""Signal facts without a value for unknown text, unless the condition names `unknown`."""


class CompiledRule:
    """A rule with its condition compiled."""

    readers: Mapping[str, Callable[[RoutingContext], Any]] = READ
    """How each fact is read; a replay has its own."""

    def __init__(self, rule: Rule) -> None:
        """Raises ValueError for a condition that cannot be compiled or names a fact that does not exist."""
        self.target, self.name = rule, rule.name
        try:
            self._program = cel.compile(rule.when)
        except ValueError as error:
            # The library's first line; the others repeat the source.
            line = str(error).splitlines()[0]
            raise ValueError("not a CEL expression: " + (line.partition("ERROR: ")[2] or line)) from None
        self.cost = microseconds(rule.when)
        if self.cost > COST_MAX:
            problem = f"takes up to {self.cost / 1e6:.2g} s; all of a policy may take {COST_MAX / 1e6} s"
            raise ValueError(f"{problem}: use shorter lists, simpler patterns, fewer macros within macros")
        if "map" in rule.when:
            # The library would convert any result to Python, however large.
            self._program = cel.compile(f"({rule.when}\n) ? true : false")
        names = self._program.variables()
        self._request_facts = [name for name in names if name in REQUEST_FACTS]
        self._signal_facts = [name for name in names if name in SIGNAL_FACTS]
        self._work_facts = [name for name in WORK_FACTS if name in rule.when and "request" in names]
        self.needs_signals, self.reads_turns = bool(self._signal_facts), bool(self._work_facts)
        plain, facts = rule.when.replace(" ", ""), [*REQUEST_FACTS, *SIGNAL_FACTS]
        for name in names:
            # The library also lists the variables of macros such as `xs.exists(name, …)`.
            if name not in facts and not any(f".{macro}({name}," in plain for macro in MACROS):
                raise ValueError(f"there is no fact {name!r}{did_you_mean(name, facts)}")

    def evaluate(self, context: RoutingContext, candidates: Candidates) -> tuple[bool, str]:
        """Whether the rule applies, and the reason in words.

        A rule whose condition raises an error does not apply: a missing header, an index out of range, a
        division by zero, a number compared with a string, a fact of an unreadable body, and for unknown text
        a fact `OF_KNOWN_TEXT`, unless the condition names `unknown`. `needs_signals` requires signals.
        """
        read = not context.unread
        values = {
            name: self.readers[name](context) for name in self._request_facts if read or name in OF_HEAD
        }
        if self._work_facts:
            members = (name for name in self._work_facts if read or name in OF_HEAD)
            values["request"] |= {name: self.readers[name](context) for name in members}
        unknown = False
        if (signals := context.signals) is not None:
            unknown = signals.unknown and "unknown" not in self._signal_facts
            given = (name for name in self._signal_facts if not (unknown and name in OF_KNOWN_TEXT))
            values.update((name, getattr(signals, name)) for name in given)
        try:
            result = self._program.execute(values)
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            reason = "the text is unknown" if unknown and "Undefined variable" in str(error) else error
            return False, f"does not apply: {reason}"
        if not isinstance(result, bool):
            return False, f"does not apply: the condition gives {type(result).__name__}, not a bool"
        if not result:
            return False, "no match"
        if needed := candidates.excluded.get(self.target.pool or ""):
            return False, f"matched, but {self.target.pool} could not answer: needs {needed}"
        return True, "matched"

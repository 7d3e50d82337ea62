"""Rules: a CEL condition over the request and its signals, and where it sends a match.

Pure. Conditions are compiled once; which facts a condition names is known statically, so a rule
that names no signal is decided without the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import cel

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.context import RoutingContext
from semroute_extproc.settings.base import did_you_mean
from semroute_extproc.settings.policies import Rule

REQUEST_FACTS: Mapping[str, tuple[str, Callable[[RoutingContext], Any]]] = {
    "api": (
        "API: chat_completions, completions, responses, messages, embeddings",
        lambda f: f.view.api.value,
    ),
    "model": ("model name the client asked for", lambda f: f.view.model),
    "stream": ("a streamed answer was asked for", lambda f: f.view.stream),
    "images": ("number of images", lambda f: f.view.images),
    "tools": ("number of tools declared", lambda f: f.view.tools),
    "tool_loop": ("the last turn is a tool's result", lambda f: f.view.tool_loop),
    "turns": ("number of turns, system prompt included", lambda f: len(f.view.turns)),
    "json_mode": ("a JSON object or schema was asked for", lambda f: f.view.json_mode),
    "effort": ("reasoning effort the client asked for, or ''", lambda f: f.view.effort),
    "stateful": ("continues state kept by one server", lambda f: f.view.stateful),
    "max_output_tokens": (
        "most tokens of the answer, 0 if not said",
        lambda f: f.view.max_output_tokens or 0,
    ),
    "prompt_tokens": ("estimated tokens of the whole prompt", lambda f: f.prompt_tokens),
    "language": ("ISO 639-1 code of the classified text", lambda f: f.language),
    "quality": ("trade-off asked for, -1.0 if none", lambda f: -1.0 if f.quality is None else f.quality),
    "request": (
        "request.headers (map, lower-case names), request.path, request.method",
        lambda f: {"headers": dict(f.head.headers), "path": f.head.path, "method": f.head.method},
    ),
}
"""Facts of the request: name, meaning, how to read it."""

SIGNAL_FACTS: Mapping[str, tuple[str, Callable[[Signals], Any]]] = {
    "domain": ("most likely of the bundle's domains", lambda s: s.domain),
    "domain_probs": ("domain to probability", lambda s: dict(s.domain_probs)),
    "domain_entropy": ("0 (sure) to 1 (no idea)", lambda s: s.domain_entropy),
    "task": ("most likely task, '' without a task head", lambda s: s.task),
    "task_probs": ("task to probability", lambda s: dict(s.task_probs)),
    "difficulty": ("0 (any model) to 1 (only a strong one)", lambda s: s.difficulty),
    "unknown": ("out of the bundle's distribution", lambda s: s.unknown),
    "tokens": ("tokens of the classified text", lambda s: s.tokens),
    "truncated": ("the text did not fit the encoder's window", lambda s: s.truncated),
}
"""Facts from the encoder: name, meaning, how to read it."""


class RuleError(ValueError):
    """A condition that cannot be compiled or names a fact that does not exist."""


class CompiledRule:
    """A rule whose condition is compiled."""

    def __init__(self, rule: Rule) -> None:
        """Raises RuleError."""
        self.rule = rule
        try:
            self._program = cel.compile(rule.when)
        except ValueError as error:
            raise RuleError(_syntax(str(error))) from None
        names = self._program.variables()
        for name in names:
            if name not in REQUEST_FACTS and name not in SIGNAL_FACTS and not _bound(name, rule.when):
                hint = did_you_mean(name, [*REQUEST_FACTS, *SIGNAL_FACTS])
                raise RuleError(f"there is no fact {name!r}{hint}")
        self._request_facts = [name for name in names if name in REQUEST_FACTS]
        self._signal_facts = [name for name in names if name in SIGNAL_FACTS]

    @property
    def needs_signals(self) -> bool:
        """The condition names a fact that only the encoder gives."""
        return bool(self._signal_facts)

    def matches(self, facts: RoutingContext) -> bool:
        """Whether the condition holds.

        A condition that fails to evaluate raises ValueError: a missing header, an index out of
        range, a division by zero, a number compared with a string. Signals must be there if `needs_signals`.
        """
        values = {name: REQUEST_FACTS[name][1](facts) for name in self._request_facts}
        if self._signal_facts:
            if facts.signals is None:
                raise ValueError("there are no signals")
            values.update((name, SIGNAL_FACTS[name][1](facts.signals)) for name in self._signal_facts)
        try:
            result = self._program.execute(values)
        except (RuntimeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise ValueError(str(error)) from None
        if not isinstance(result, bool):
            raise ValueError(f"the condition gives {type(result).__name__}, not a bool")
        return result


_TEXT = r"""(?:"([^"\\]*)"|'([^'\\]*)')"""
"""A text in an expression, without escapes."""

_FACT = r"(?<![\w.])(domain|task)"
_LABELS = re.compile(
    rf"{_FACT}\s*[!=]=\s*{_TEXT}(?!\s*[+.])|(?<!\+)\s*{_TEXT}\s*[!=]=\s*{_FACT}\b"
    rf"|{_FACT}_probs\s*\[\s*{_TEXT}\s*\]"
)
_LABEL_LISTS = re.compile(rf"{_FACT}\s+in\s*\[((?:\s*{_TEXT}\s*,?)*)\]")
_HEADERS = re.compile(rf"\brequest\.headers\s*\[\s*{_TEXT}\s*\]|{_TEXT}\s+in\s+request\.headers\b")


def doubts(expression: str, labels: Mapping[str, Collection[str]]) -> Iterator[str]:
    """What a condition names that there cannot be, most likely by a slip.

    `labels` are those that `domain` and `task` may have. The library gives no tree of an expression, so
    this goes by how it is written, and what it finds is worth a note and no more.
    """
    for match in _HEADERS.finditer(expression):
        name = _first(*match.groups())
        if name != name.lower():
            yield f"names of headers are in lower case here: {name.lower()!r}, not {name!r}"
    for head, label in _compared(expression):
        known = labels.get(head)
        # Where a bundle has no head for tasks, `task` is the empty string.
        if known is not None and label not in known and label:
            hint = did_you_mean(label, known)
            yield f"no bundle has the {head} {label!r}{hint}: {', '.join(known) or 'it has none at all'}"


def _compared(expression: str) -> Iterator[tuple[str, str]]:
    """Every label that `domain` or `task` is compared with."""
    for match in _LABELS.finditer(expression):
        before, one, two, three, four, after, probs, five, six = match.groups()
        yield before or after or probs, _first(one, two, three, four, five, six)
    for match in _LABEL_LISTS.finditer(expression):
        for text in re.finditer(_TEXT, match[2]):
            yield match[1], _first(*text.groups())


def _first(*groups: str | None) -> str:
    return next((group for group in groups if group is not None), "")


def _bound(name: str, expression: str) -> bool:
    """`name` is bound by a macro such as `xs.exists(name, …)`; the library lists those too."""
    return any(f"{macro}({name}," in expression.replace(" ", "") for macro in _MACROS)


_MACROS = (".all", ".exists", ".exists_one", ".filter", ".map")


def _syntax(message: str) -> str:
    """The first line of the library's message, without its own echo of the source."""
    head = message.splitlines()[0]
    _, _, detail = head.partition("ERROR: ")
    return "not a CEL expression: " + (detail or head)

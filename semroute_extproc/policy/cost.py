"""An upper bound for the time of a CEL condition, from its tokens: the library has no limit. Pure."""

import re
from collections.abc import Callable

import cel

MAPS = {"request", "domain_probs", "task_probs"}  # the facts that are maps
MACROS = ("all", "exists", "exists_one", "filter", "map")
COST_MAX = 100_000.0  # Microseconds of all conditions of a policy together
STEP = 2.0  # Microseconds of a token, for the longest text and many headers
COPY, COPY_MAP = 0.1, 50.0  # Microseconds to copy a value, or a map such as the headers
LIST_MAX = 100  # Items of a list or map that is not written in the condition: Envoy's limit on headers
REPEATS_MAX = 64  # of `{n}` in a regular expression, which the library compiles for every request

_STRING = (
    r'''[rb]{0,2}(?:"""(?:[^\\]|\\.)*?"""|\'{3}(?:[^\\]|\\.)*?\'{3}|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')'''
)
_CONSTANT = re.compile(r"[\d\"']")
_TOKEN = re.compile(rf"//[^\n]*|({_STRING}|\w+|\S)", re.DOTALL)
_ATOM = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{[\d,]*\}|.", re.DOTALL)
CLASSES = {**dict.fromkeys("wWpP", 250.0), "D": 50.0}
"""Microseconds to compile a large class of Unicode, such as `\\w`."""
_CLASS = re.compile(r"\\([wWpPD])")


def microseconds(expression: str) -> float:
    """At most what the condition takes; raises ValueError for a regular expression that is refused.

    A macro repeats its body for every item, and may build larger values from those of the macro before.
    """
    parts = ["", "", "", *filter(None, _TOKEN.findall(expression)), ""]
    others = LIST_MAX + parts.count(",")  # most items of a value that is no list in brackets
    total, factor, items, joins, macros = 0.0, 1, others, 0, 0
    # Of each open bracket: the macro, "list" or "", the factor before it, its items so far, its place.
    opened: list[tuple[str, int, int, int]] = []
    for index, part in enumerate(parts[3:-1], 3):
        total += STEP * factor
        before, after = parts[index - 1], parts[index + 1]
        grows = any(kind in MACROS for kind, *_ in opened)
        if part in "([{":
            macro = part == "(" and before in MACROS and parts[index - 2] == "."
            literal = part == "[" and not re.match(r"[\w\])}\"']", before)
            opened.append((before if macro else "list" if literal else "", factor, 1, index))
            if macro:
                macros += 1
                factor *= items if parts[index - 3] in ("]", ")") else others
        elif part in ")]}" and opened:
            inner, (kind, factor, count, start) = factor, opened.pop()
            items = inner // factor if kind in MACROS else count if kind == "list" else others
            if kind in ("map", "filter"):
                # The library copies the list for each item that it adds.
                large = kind == "map" and not MAPS.isdisjoint(parts[start:index])
                total += factor * items**2 * (COPY_MAP if large else COPY)
        elif part == "," and opened:
            kind, outer, count, start = opened[-1]
            opened[-1] = kind, outer, count + 1, start
            joins += grows and kind not in MACROS and not (_CONSTANT.match(before) and _CONSTANT.match(after))
        elif part == "+":
            joins += grows
        elif part == "matches":
            total += factor * _pattern(parts[index + 1 : index + 4])
    return total * float(1 + joins) ** min(macros, 64)


def _pattern(call: list[str]) -> float:
    """Microseconds to compile a regular expression, which the library does each time, and to match it."""
    if len(call) < 3 or (call[0], call[2]) != ("(", ")") or call[1][-1] not in "\"'":
        raise ValueError("`matches` needs its regular expression as one string, not one that is computed")
    literal = call[1]
    atoms = _ATOM.findall(literal if literal[0] == "r" else literal.replace("\\\\", "\\"))
    states = _expanded(atoms, lambda _: 1.0)
    classes = _expanded(atoms, lambda atom: sum(CLASSES[kind] for kind in _CLASS.findall(atom)))
    # Above some hundred states, each character of the text takes longer too.
    cost = 50.0 + 5.0 * states + states**2 / 100.0 + classes
    if cost <= COST_MAX:
        try:
            cel.compile(f'"".matches({literal})').execute({})
        except (ValueError, RuntimeError):
            raise ValueError(f"{literal} is not a regular expression") from None
    return cost


def _expanded(atoms: list[str], weigh: Callable[[str], float]) -> float:
    """The sum of the weights of a regular expression's atoms, each as often as it is repeated."""
    groups, last = [0.0], 0.0  # of each open group; of what a repetition repeats
    for atom in atoms:
        if repeat := re.fullmatch(r"\{(?:\d*,)?(\d{1,9}),?\}", atom):
            if int(repeat[1]) > REPEATS_MAX:
                raise ValueError(f"the regular expression repeats {atom}, more than {REPEATS_MAX} times")
            groups[-1] += last * (int(repeat[1]) - 1)
        elif atom == "(":
            groups.append(0.0)
        else:
            last = groups.pop() if atom == ")" and len(groups) > 1 else weigh(atom)
            groups[-1] += last
    return sum(groups)

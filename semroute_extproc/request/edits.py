"""Byte-preserving edits of a JSON object: members are set, every other byte stays as it was.

Pure. Decoding and encoding a body again would change numbers, escapes and key order, and with
them the prefix-cache hash. Instead a strict parser checks the text once and says how long each
top-level value is; a walk over the keys then yields where it lies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from semroute_extproc.errors import BadBody
from semroute_extproc.outcome import Cause

MEMBERS_MAX = 4_096
"""Most members of an object that is edited, duplicates included."""

RESCANS_MAX = 8
"""Most arrays and objects under a key that comes again later; each costs one more scan."""

_Tree = dict[str, "bytes | _Tree"]
"""Key to its new value, or to the keys to set inside its object."""

_MEMBERS = Decoder(dict[str, Raw])
_STRING = Decoder(str)
_QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_KEY = re.compile(rb"[ \t\n\r]*+(" + _QUOTED + rb")[ \t\n\r]*+:[ \t\n\r]*+", re.DOTALL)
_SCALAR = re.compile(_QUOTED + rb"|[-+.0-9A-Za-z]++", re.DOTALL)
_AFTER = re.compile(rb"[ \t\n\r]*+([,}])")


def set_members(body: bytes, members: Mapping[tuple[str, ...], object]) -> bytes:
    """`body` with the member at each path of `members` set to its value.

    A path is a key, or a key and keys inside its object. Every occurrence of a duplicate key is
    set, because upstreams differ in which one they take, and a key written with escapes is the
    same key. A missing member becomes the first of its object; what is not an object on the way
    to it is replaced by one. Values may be anything JSON, or `msgspec.Raw` to write as is.

    Raises BadBody: `not_json` if the body is not exactly one JSON object in UTF-8 (a byte order
    mark makes it none), `too_many_members` beyond the bounds above. Strings that are not edited
    are not checked for valid UTF-8. Raises ValueError for paths that are empty or contain
    each other.
    """
    tree = _tree(members)
    try:
        return _edited(body, tree)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadBody(Cause.NOT_JSON) from None


def _tree(members: Mapping[tuple[str, ...], object]) -> _Tree:
    """The members grouped by their keys, values encoded."""
    tree: _Tree = {}
    for path, value in members.items():
        node = tree
        for name in path[:-1]:
            inner = node.setdefault(name, {})
            if isinstance(inner, bytes):
                raise ValueError(f"{path} lies inside a member that is set itself")
            node = inner
        if not path or path[-1] in node:
            raise ValueError(f"{path} is empty or contains another path")
        node[path[-1]] = msgspec.json.encode(value)
    return tree


def _edited(text: bytes, tree: _Tree) -> bytes:
    """The JSON object `text` with `tree` set in it."""
    values = _MEMBERS.decode(text)
    start = text.index(b"{") + 1
    pieces: list[bytes] = []
    missing = dict(tree)
    done = start
    for name, begin, end in _spans(text, start, values):
        if name in tree:
            pieces += (text[done:begin], _value(tree[name], text[begin:end]))
            done = end
            missing.pop(name, None)
    added = [msgspec.json.encode(name) + b":" + _value(node, b"") for name, node in missing.items()]
    separator = b"," if added and values else b""
    return b"".join((text[:start], b",".join(added), separator, *pieces, text[done:]))


def _value(node: bytes | _Tree, old: bytes) -> bytes:
    """The bytes of a member's new value, given the old ones."""
    if isinstance(node, bytes):
        return node
    return _edited(old if old.startswith(b"{") else b"{}", node)


def _spans(text: bytes, position: int, values: Mapping[str, Raw]) -> Iterator[tuple[str, int, int]]:
    """Name, begin and end of every member's value; `position` is just after the opening brace.

    `text` is known to be valid and `values` to hold the last value of each key. Where the text at
    hand equals that value and is followed by a comma or brace, the value ends there: no JSON
    value is the beginning of another one, but for numbers, which a comma or brace ends too.
    Otherwise this is an earlier duplicate with another value, whose end is looked for.
    """
    if not values:
        return
    rescans = 0
    for _ in range(MEMBERS_MAX):
        key = _KEY.match(text, position)
        assert key is not None, "no key in a valid object. This is a bug."
        name, begin = _STRING.decode(key[1]), key.end()
        end = begin + memoryview(values[name]).nbytes
        after = _AFTER.match(text, end) if text.startswith(values[name], begin) else None
        if after is None:
            scalar = _SCALAR.match(text, begin)
            rescans += scalar is None
            if rescans > RESCANS_MAX:
                break
            end = scalar.end() if scalar else begin + _length(text[begin:], values)
            after = _AFTER.match(text, end)
            assert after is not None, "no end of a valid value. This is a bug."
        yield name, begin, end
        if after[1] == b"}":
            return
        position = after.end()
    raise BadBody(Cause.TOO_MANY_MEMBERS)


def _length(rest: bytes, values: Mapping[str, Raw]) -> int:
    """Length of the value that `rest`, an object's tail, begins with: it is read under a new key."""
    unused = max(values, key=len) + "+"
    members = _MEMBERS.decode(b"{" + msgspec.json.encode(unused) + b":" + rest)
    return memoryview(members[unused]).nbytes

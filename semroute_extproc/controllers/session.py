"""Sessions: which pool a conversation is in.

Pure; the clock and the hash key are arguments. A conversation is known by the client's header, or
by a keyed hash of its first turns, which come again with every request of it. Nothing of the text
is kept, only the hash. Two conversations that begin with the same words have the same hash without
a header: the first request of a conversation therefore never looks the pool up, and what it
decides replaces what was remembered, so one long conversation cannot hold all that begin like it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from semroute_extproc.policy.decision import Lock
from semroute_extproc.request import RequestHead, RequestView

SESSION_HEADER = "x-semroute-session"
"""The client's name of a conversation; any bytes, hashed and never kept."""

DIGEST_BYTES = 16
"""Length of a conversation's hash."""

CREDENTIALS = ("authorization", "x-api-key")
"""Headers that tell clients apart; hashed with a conversation and never kept."""

HASHED_CHARACTERS_MAX = 65_536
"""Characters of one turn that are hashed; of a longer turn its head, its tail and its length."""


def session_key(head: RequestHead, view: RequestView, secret: bytes) -> str:
    """A conversation's hash in hexadecimal, empty if the request belongs to none that can be told.

    The model's name is part of it: a client that asks for another one asks for another trade-off.
    So are the credentials, where Envoy forwards them: nobody joins the conversation of another client
    then. `secret` is at most 64 bytes.
    """
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    _add(digest, view.model)
    for name in CREDENTIALS:
        _add(digest, head.headers.get(name, ""))
    if given := head.headers.get(SESSION_HEADER, ""):
        _add(digest, "header")
        _add(digest, given)
        return digest.hexdigest()
    if view.stateful:
        # Its first turn is not the conversation's: that one is with the server.
        return ""
    first = next((turn for turn in view.turns if turn.role == "user"), None)
    if first is None:
        return ""
    for turn in view.turns:
        if turn.role == "system":
            _add(digest, turn.text)
        elif turn is first:
            break
    _add(digest, first.text)
    return digest.hexdigest()


def begins(head: RequestHead, view: RequestView) -> bool:
    """Whether this is the first request of a conversation that is only known by its turns."""
    if head.headers.get(SESSION_HEADER):
        return False
    return sum(turn.role != "system" for turn in view.turns) <= 1


def lock_of(view: RequestView) -> Lock:
    """What forbids a conversation to change its pool."""
    if view.stateful:
        return Lock.STATEFUL
    return Lock.TOOL_LOOP if view.tool_loop else Lock.NONE


def _add(digest: hashlib.blake2b, text: str) -> None:
    """Hash a text with its length, so that no two lists of texts are the same bytes."""
    if len(text) > HASHED_CHARACTERS_MAX:
        half = HASHED_CHARACTERS_MAX // 2
        data = (text[:half] + text[-half:]).encode("utf-8", "surrogatepass")
    else:
        data = text.encode("utf-8", "surrogatepass")
    digest.update(b"%d:%d:" % (len(text), len(data)))
    digest.update(data)


class Sessions:
    """Conversations and their pools, within this process: bounded, the longest silent goes first."""

    def __init__(self, entries_max: int, ttl_seconds: float) -> None:
        self._entries_max = entries_max
        self._ttl = ttl_seconds
        self._entries: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now: float) -> str | None:
        """The pool of a conversation, None if it is unknown or was silent for too long."""
        found = self._entries.get(key)
        if found is None:
            return None
        pool, seen = found
        if now - seen > self._ttl:
            del self._entries[key]
            return None
        return pool

    def keep(self, key: str, pool: str, now: float) -> None:
        """The conversation is in `pool` from now on."""
        self._entries[key] = (pool, now)
        self._entries.move_to_end(key)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

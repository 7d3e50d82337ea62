"""Sessions: which pool a conversation is in.

Pure; the clock and the hash key are arguments. Nothing of the text is kept, only keyed hashes.

With the client's header the hash of that is the conversation. Without it a request is known by its
turns: it leaves the hash of all of them behind, and the next request of the conversation, which
sends them again with an answer and something new, is found by the hash of what it begins with. So
two conversations are only taken for one while they are word for word the same, which their prefix
cache is then too; and an application that puts the same examples before every question has as many
conversations as questions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.view import RequestHead, RequestView, Turn

SESSION_HEADER = "x-semroute-session"
"""The client's name of a conversation; any bytes, hashed and never kept."""

DIGEST_BYTES = 16
"""Length of a conversation's hash."""

CREDENTIALS = ("authorization", "x-api-key")
"""Headers that tell clients apart; hashed with a conversation and never kept."""

HASHED_CHARACTERS_MAX = 8_192
"""Characters of one turn that are hashed; of a longer turn its head, its tail and its length."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Hashes in hexadecimal."""

    find: str = ""
    """What the conversation so far was left under; empty if the request begins one, or is of none."""
    keep: str = ""
    """What it is left under now; empty if it is of no conversation that can be told."""


NO_KEYS = Keys()


def session_keys(head: RequestHead, view: RequestView, secret: bytes) -> Keys:
    """What a request's conversation is found and kept under; `secret` is at most 64 bytes.

    The model's name is part of it: a client that asks for another one asks for another trade-off.
    So are the credentials, where Envoy forwards them: nobody joins another client's conversation.
    """
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    _add(digest, view.model)
    for name in CREDENTIALS:
        _add(digest, head.headers.get(name, ""))
    if given := head.headers.get(SESSION_HEADER, ""):
        _add(digest, "header")
        _add(digest, given)
        key = digest.hexdigest()
        return Keys(key, key)
    turns = view.turns
    if view.stateful or not any(turn.role == "user" for turn in turns):
        # What a stateful request sends is only its end: the beginning is with the server.
        return NO_KEYS
    before = len_before(turns)
    find = ""
    for number, turn in enumerate(turns):
        if number == before:
            find = digest.hexdigest()
        _add(digest, turn.role)
        _add(digest, turn.text)
    known = any(turn.role == "user" for turn in turns[:before])
    return Keys(find if known else "", digest.hexdigest())


def len_before(turns: Sequence[Turn]) -> int:
    """How many of `turns` the conversation's last request had: all but the last answer and what follows.

    What follows is tools' results, or what the user and the system say, results before them included.
    Where an API shows no turn for an answer that only called tools, the results end it as well.
    """
    end = len(turns)
    while end > 0 and turns[end - 1].role not in ("assistant", "tool"):
        end -= 1
    while end > 0 and turns[end - 1].role == "tool":
        end -= 1
    while end > 0 and turns[end - 1].role == "assistant":
        end -= 1
    return end


def lock_of(view: RequestView) -> Lock:
    """What forbids a conversation to change its pool."""
    if view.stateful:
        return Lock.STATEFUL
    return Lock.TOOL_LOOP if view.tool_loop else Lock.NONE


def _add(digest: hashlib.blake2b, text: str) -> None:
    """Hash a text with its length, so that no two lists of texts are the same bytes."""
    kept = text
    if len(text) > HASHED_CHARACTERS_MAX:
        half = HASHED_CHARACTERS_MAX // 2
        kept = text[:half] + text[-half:]
    data = kept.encode("utf-8", "surrogatepass")
    digest.update(b"%d:%d:" % (len(text), len(data)))
    digest.update(data)


class Sessions:
    """Keys and their pools, within this process: bounded, the longest unused goes first."""

    def __init__(self, entries_max: int, ttl_seconds: float) -> None:
        self._entries_max = entries_max
        self._ttl = ttl_seconds
        self._entries: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now: float) -> str | None:
        """The pool left under a key, None if there is none or it was silent for too long.

        Being found is no silence: where an API does not show the answers that only call tools, all
        requests of a tool loop are found by what the first of them began with.
        """
        found = self._entries.get(key)
        if found is None:
            return None
        pool, seen = found
        if now - seen > self._ttl:
            del self._entries[key]
            return None
        self.keep(key, pool, now)
        return pool

    def keep(self, key: str, pool: str, now: float) -> None:
        """Leave a pool under a key."""
        self._entries[key] = (pool, now)
        self._entries.move_to_end(key)
        while len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)

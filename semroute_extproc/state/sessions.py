"""Sessions: which pool a conversation is in. Pure; the time and the hash key are arguments.

A conversation is identified by the client's header, or else by its turns. Each request stores its pool
under the hash of all its turns. The next request repeats those turns and adds an answer and new turns, so
the hash of its first turns finds the pool. Only conversations with identical turns are confused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.view import RequestHead, RequestView, Turn

SESSION_HEADER = "x-semroute-session"  # The client's ID of a conversation; any bytes.
CREDENTIALS = ("authorization", "x-api-key")  # Headers that tell clients apart.
DIGEST_BYTES = 16
HASHED_CHARACTERS_MAX = 8_192  # Per turn; of a longer one, the head, the tail and the length are hashed.


class Keys(NamedTuple):
    """Hashes: look up the pool under `find` and store it under `keep`; empty for no conversation."""

    find: str = ""
    keep: str = ""


def session_keys(head: RequestHead, view: RequestView, secret: bytes) -> Keys:
    """The keys of a request's conversation; `secret` is at most 64 bytes.

    They depend on the model's name, because each model has its own trade-off, and on the credentials that
    Envoy forwards, so that no client joins another client's conversation.
    """
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    _add(digest, view.model, *(head.headers.get(name, "") for name in CREDENTIALS))
    if given := head.headers.get(SESSION_HEADER, ""):
        _add(digest, "header", given)
        return Keys(digest.hexdigest(), digest.hexdigest())
    turns = view.turns
    if view.stateful or not any(turn.role == "user" for turn in turns):
        # A stateful request has only the last turns of its conversation.
        return Keys()
    before = len_before(turns)
    for turn in turns[:before]:
        _add(digest, turn.role, turn.text)
    find = digest.hexdigest() if any(turn.role == "user" for turn in turns[:before]) else ""
    for turn in turns[before:]:
        _add(digest, turn.role, turn.text)
    return Keys(find, digest.hexdigest())


def len_before(turns: Sequence[Turn]) -> int:
    """How many of `turns` the conversation's previous request had: all before the last answer.

    Tool results and turns of the user or the system follow the answer. An API may have no turn for an
    answer that only calls tools; then the tool results mark its position.
    """
    roles = "".join({"assistant": "a", "tool": "t"}.get(turn.role, "-") for turn in turns)
    return len(roles.rstrip("-").rstrip("t").rstrip("a"))


def lock_of(view: RequestView) -> Lock:
    """The reason, if any, why the request's conversation must not change its pool."""
    return Lock.STATEFUL if view.stateful else Lock.TOOL_LOOP if view.tool_loop else Lock.NONE


def _add(digest: hashlib.blake2b, *texts: str) -> None:
    """Hash each text with its length, so that different lists of texts give different bytes."""
    half = HASHED_CHARACTERS_MAX // 2
    for text in texts:
        kept = text if len(text) <= HASHED_CHARACTERS_MAX else text[:half] + text[-half:]
        data = kept.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%d:" % (len(text), len(data)))
        digest.update(data)


class Sessions:
    """Key to pool within this process: a bounded LRU cache with expiry."""

    def __init__(self, entries_max: int, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._entries: LRUCache[str, tuple[str, float]] = LRUCache(entries_max)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now: float) -> str | None:
        """The pool under a key; None if there is none or it expired.

        A lookup renews the entry: in APIs that have no turn for an answer that only calls tools, every
        request of a tool loop looks up the key of the first one.
        """
        pool, used = self._entries.pop(key, ("", now))
        if not pool or now - used > self._ttl:
            return None
        self.keep(key, pool, now)
        return pool

    def keep(self, key: str, pool: str, now: float) -> None:
        """Store a pool under a key."""
        self._entries[key] = (pool, now)

"""Sessions: which pool a conversation is in. Pure; the clock and the hash key are arguments.

A conversation is known by the client's header, or else by its turns: a request leaves the hash of all its
turns behind, and the next one, which repeats them and adds an answer and something new, is found by the
hash of its beginning. Two conversations are confused only while they are equal word for word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.view import RequestHead, RequestView, Turn

SESSION_HEADER = "x-semroute-session"  # The client's name of a conversation; any bytes.
CREDENTIALS = ("authorization", "x-api-key")  # Headers that tell clients apart.
DIGEST_BYTES = 16
HASHED_CHARACTERS_MAX = 8_192  # Of a turn; a longer one counts by its head, its tail and its length.


class Keys(NamedTuple):
    """Hashes: `find` was left by the conversation's last request, `keep` is left by this one; or empty."""

    find: str = ""
    keep: str = ""


def session_keys(head: RequestHead, view: RequestView, secret: bytes) -> Keys:
    """The keys of a request's conversation; `secret` is at most 64 bytes.

    They depend on the model's name, because another one is another trade-off, and on the credentials,
    where Envoy forwards them, so that no client joins another client's conversation.
    """
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    _add(digest, view.model, *(head.headers.get(name, "") for name in CREDENTIALS))
    if given := head.headers.get(SESSION_HEADER, ""):
        _add(digest, "header", given)
        return Keys(digest.hexdigest(), digest.hexdigest())
    turns = view.turns
    if view.stateful or not any(turn.role == "user" for turn in turns):
        # A stateful request sends only the end of its conversation.
        return Keys()
    before = len_before(turns)
    for turn in turns[:before]:
        _add(digest, turn.role, turn.text)
    find = digest.hexdigest() if any(turn.role == "user" for turn in turns[:before]) else ""
    for turn in turns[before:]:
        _add(digest, turn.role, turn.text)
    return Keys(find, digest.hexdigest())


def len_before(turns: Sequence[Turn]) -> int:
    """How many of `turns` the conversation's last request had: all before the last answer.

    After the answer come tools' results and words of the user or the system. An API may show no turn
    for an answer that only called tools; then the results mark it.
    """
    roles = "".join({"assistant": "a", "tool": "t"}.get(turn.role, "-") for turn in turns)
    return len(roles.rstrip("-").rstrip("t").rstrip("a"))


def lock_of(view: RequestView) -> Lock:
    """Why the request's conversation must not change its pool."""
    return Lock.STATEFUL if view.stateful else Lock.TOOL_LOOP if view.tool_loop else Lock.NONE


def _add(digest: hashlib.blake2b, *texts: str) -> None:
    """Hash each text with its length, so no two lists of texts give the same bytes."""
    half = HASHED_CHARACTERS_MAX // 2
    for text in texts:
        kept = text if len(text) <= HASHED_CHARACTERS_MAX else text[:half] + text[-half:]
        data = kept.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%d:" % (len(text), len(data)))
        digest.update(data)


class Sessions:
    """Key to pool within this process; bounded, the least recently used entry goes first."""

    def __init__(self, entries_max: int, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._entries: LRUCache[str, tuple[str, float]] = LRUCache(entries_max)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str, now: float) -> str | None:
        """The pool under a key; None if there is none or it was unused for too long.

        Finding it counts as use: where an API does not show the answers that only call tools, all
        requests of a tool loop are found by the key of its first one.
        """
        pool, used = self._entries.pop(key, ("", now))
        if not pool or now - used > self._ttl:
            return None
        self.keep(key, pool, now)
        return pool

    def keep(self, key: str, pool: str, now: float) -> None:
        """Keep a pool under a key."""
        self._entries[key] = (pool, now)

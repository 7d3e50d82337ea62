"""Sessions: which pool a conversation is in. Pure; the time and the hash key are arguments.

A conversation is identified by a name that the client gives, or else by its turns, but for the system's.
Each request stores its pool under the hash of all its turns. The next request repeats those turns and adds
an answer and new turns, so the hash of its first turns finds the pool. Only conversations with identical
turns are confused.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from semroute_extproc.policy.context import Lock
from semroute_extproc.request.view import RequestHead, RequestView, Turn
from semroute_extproc.settings.controllers import SessionController

DIGEST_BYTES = 16
AFFINITY_BYTES = 8  # Of the key that Envoy chooses a replica by.
TAG_BYTES = 4  # Of a pool's name in a response's ID.
HASHED_CHARACTERS_MAX = 8_192  # Per turn; of a longer one, the head, the tail and the length are hashed.

_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{8})([0-9a-f]{16})[0-9a-f]{16}")
_SESSION_WITHIN = re.compile(r"session_(?:id\W+)?([\w-]{8,})")  # In Claude Code's `metadata.user_id`.


class Keys(NamedTuple):
    """Hashes: look up the pool under `find` and store it under `keep`; empty for no conversation."""

    find: str = ""
    keep: str = ""
    affinity: str = ""  # The same for every request of a conversation, in every process.


def session_keys(
    head: RequestHead, view: RequestView, secret: bytes, settings: SessionController, shared: bytes = b""
) -> Keys:
    """The keys of a conversation. `secret` keys the hashes, `shared` the affinity; at most 64 bytes each.

    They depend on the model's name, because each model has its own trade-off, and on the identity that
    Envoy forwards, so that no client joins another client's conversation: the first header that is present.
    """
    given, turns = _name(head, view, settings), view.turns
    if not given and (view.stateful or not any(turn.role == "user" for turn in turns)):
        # A stateful request has only the last turns of its conversation.
        return Keys()
    digest = hashlib.blake2b(key=secret, digest_size=DIGEST_BYTES)
    affinity = hashlib.blake2b(key=shared, digest_size=AFFINITY_BYTES)
    identity = next((name for name in settings.identity if name in head.headers), "")
    for each in (digest, affinity):
        each.update(_encoded(view.model, identity, head.headers.get(identity, "")))
        each.update(_encoded(*(("name", given) if given else ())))
    if given:
        return Keys(digest.hexdigest(), digest.hexdigest(), affinity.hexdigest())
    # Joined, because thousands of turns are hashed faster so.
    parts = [b"" if turn.role == "system" else _encoded(turn.role, turn.text) for turn in turns]
    before = len_before(turns)  # clients change the system's turns in every request, so they are left out
    answered = next((n for n, turn in enumerate(turns) if turn.role in ("assistant", "tool")), len(turns))
    affinity.update(b"".join(parts[:answered]))
    digest.update(b"".join(parts[:before]))
    known = before < len(turns) and any(turn.role == "user" for turn in turns[:before])
    find = digest.hexdigest() if known else ""
    digest.update(b"".join(parts[before:]))
    return Keys(find, digest.hexdigest(), affinity.hexdigest())


def _name(head: RequestHead, view: RequestView, settings: SessionController) -> str:
    """The client's name of the conversation; empty without one."""
    found = [(name, head.headers.get(name, "")) for name in settings.headers]
    found += [(path, view.ids.get(path, "")) for path in settings.members]
    for place, name in found:
        if place == "metadata.user_id":  # A user has many conversations.
            name = within[1] if (within := _SESSION_WITHIN.search(name)) else ""
        if name:
            return name
    return ""


def response_id(pool: str, affinity: str, nonce: str) -> str:
    """A response's ID that says where it is stored; `nonce` is 16 random hexadecimal digits."""
    return f"resp_{tag(pool)}{affinity:0>16}{nonce}"


def stored_in(response: str) -> tuple[str, str]:
    """The tag of the pool in a `response_id`, and the affinity; empty for any other ID."""
    found = _RESPONSE_ID.fullmatch(response)
    return (found[1], found[2].removeprefix("0" * 16)) if found else ("", "")


def tag(pool: str) -> str:
    """A pool's name in a response's ID."""
    return hashlib.blake2b(pool.encode(), digest_size=TAG_BYTES).hexdigest()


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


def _encoded(*texts: str) -> bytes:
    """Each text with its length, so that different lists of texts give different bytes."""
    half, parts = HASHED_CHARACTERS_MAX // 2, list[bytes]()
    for text in texts:
        kept = text if len(text) <= HASHED_CHARACTERS_MAX else text[:half] + text[-half:]
        data = kept.encode("utf-8", "surrogatepass")
        parts += b"%d:%d:" % (len(text), len(data)), data
    return b"".join(parts)


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

"""Signals of texts that were read lately: a bounded least-recently-used cache.

Pure. What a bundle says of a text never changes, so an entry needs no age; the policy is not part
of it and is evaluated for every request. Kept are digests and signals, never a text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

from semroute_extproc.encoder.signals import Signals

DIGEST_BYTES = 16
"""128 bits: two of a billion texts share a digest once in 10^20 runs."""

Key = tuple[str, str, bytes]


def key_of(revision: str, language: str, text: str) -> Key:
    """What signals depend on: the bundle's revision, the language it was read as, the classified text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES)
    return revision, language, digest.digest()


class SignalCache:
    """At most `entries` results, some six kilobytes each; 0 keeps none."""

    def __init__(self, entries: int, on_look: Callable[[bool], None] = lambda _: None) -> None:
        """`on_look` is told of every look whether it was a hit."""
        self._entries = entries
        self._on_look = on_look
        self._kept: OrderedDict[Key, Signals] = OrderedDict()

    def __bool__(self) -> bool:
        """Whether anything is ever kept."""
        return self._entries > 0

    def __len__(self) -> int:
        """Results kept now."""
        return len(self._kept)

    def get(self, key: Key) -> Signals | None:
        """The result for `key`, which is the freshest from now on; None if there is none."""
        signals = self._kept.get(key)
        self._on_look(signals is not None)
        if signals is not None:
            self._kept.move_to_end(key)
        return signals

    def put(self, key: Key, signals: Signals) -> None:
        """Keep a result; the one that was not asked for the longest makes room."""
        self._kept[key] = signals
        self._kept.move_to_end(key)
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)

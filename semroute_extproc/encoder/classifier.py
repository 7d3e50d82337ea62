"""Text to signals: select the bundle by language, run one encoder pass, apply the bundle's calibration.

Signals of recent texts are cached. They never expire, because a bundle is deterministic.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import replace

from cachetools import LRUCache

from semroute_extproc.encoder.queue import EncodeQueue
from semroute_extproc.encoder.remote import RemoteEncoder
from semroute_extproc.encoder.signals import Signals, calibrate
from semroute_extproc.events import CacheLookup, Emit, ignore

DIGEST_BYTES = 16  # 128 bits: the probability that two of a billion texts share a digest is about 10^-21


class Classifier:
    """A default encoder, encoders for single languages, and a bounded cache."""

    def __init__(
        self,
        default: EncodeQueue | RemoteEncoder,
        by_language: Mapping[str, EncodeQueue | RemoteEncoder],
        cache_entries: int = 0,
        emit: Emit = ignore,
    ) -> None:
        """`by_language` is keyed by ISO 639-1 code. An entry of the cache takes about 6 kB."""
        self.bundle = default.bundle
        self._encoders = {"any": default, **by_language}
        self._languages: dict[EncodeQueue | RemoteEncoder, list[str]] = {}
        for language, encoder in self._encoders.items():
            self._languages.setdefault(encoder, []).append(language)
        self._cache = LRUCache[tuple[str, str, bytes], Signals](cache_entries) if cache_entries else None
        self._emit = emit

    async def signals(self, text: str, language: str, deadline: float) -> Signals:
        """Signals before `deadline` (the loop's clock), at once if cached; raises EncoderUnavailable."""
        encoder, cache = self._encoders.get(language, self._encoders["any"]), self._cache
        if cache is None:
            return calibrate(encoder.bundle, await encoder.encode(text, deadline), language)
        key = cache_key(encoder.bundle.revision, language, text)
        signals = cache.get(key)
        self._emit(CacheLookup(hit=signals is not None))
        if signals is None:
            signals = calibrate(encoder.bundle, await encoder.encode(text, deadline), language)
            cache[key] = replace(signals, remote="") if signals.remote else signals
        return signals

    async def verify(self) -> None:
        """Ask the servers that run graphs for one pass each; raises ConfigError if one has another graph."""
        for encoder in self._languages:
            if isinstance(encoder, RemoteEncoder):
                await encoder.verify()

    @property
    def waiting(self) -> int:
        """Texts that wait for an encoder."""
        return sum(encoder.waiting for encoder in self._languages)

    def describe(self) -> list[dict[str, str]]:
        """Each encoder's description, and the languages it reads."""
        return [
            {**encoder.describe(), "language": " ".join(languages)}
            for encoder, languages in self._languages.items()
        ]

    async def close(self) -> None:
        """Stop every encoder."""
        await asyncio.gather(*(encoder.close() for encoder in self._languages))


def cache_key(revision: str, language: str, text: str) -> tuple[str, str, bytes]:
    """What signals depend on: the bundle's revision, the language, and the text as a digest."""
    content = text.encode("utf-8", "surrogatepass")
    return revision, language, hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()

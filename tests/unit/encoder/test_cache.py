"""The cache of signals."""

from __future__ import annotations

from builders import BUNDLE, raw

from semroute_extproc.encoder.cache import SignalCache, key_of
from semroute_extproc.encoder.signals import calibrate

SIGNALS = calibrate(BUNDLE, raw(), "en")


def test_what_was_put_in_is_found_under_the_same_bundle_language_and_text_only() -> None:
    cache = SignalCache(10)
    cache.put(key_of("r1", "en", "text"), SIGNALS)
    assert cache.get(key_of("r1", "en", "text")) is SIGNALS
    for other in (("r2", "en", "text"), ("r1", "fr", "text"), ("r1", "en", "text ")):
        assert cache.get(key_of(*other)) is None


def test_the_longest_unused_makes_room() -> None:
    cache = SignalCache(2)
    for text in ("a", "b"):
        cache.put(key_of("r", "en", text), SIGNALS)
    assert cache.get(key_of("r", "en", "a")) is SIGNALS
    cache.put(key_of("r", "en", "c"), SIGNALS)
    assert len(cache) == 2
    assert cache.get(key_of("r", "en", "b")) is None
    assert cache.get(key_of("r", "en", "a")) is SIGNALS


def test_hits_and_misses_are_told() -> None:
    looks: list[bool] = []
    cache = SignalCache(2, looks.append)
    cache.get(key_of("r", "en", "a"))
    cache.put(key_of("r", "en", "a"), SIGNALS)
    cache.get(key_of("r", "en", "a"))
    assert looks == [False, True]


def test_a_text_with_a_lone_surrogate_has_a_key() -> None:
    assert key_of("r", "en", "\ud800") != key_of("r", "en", "\ud801")


def test_the_key_holds_no_text() -> None:
    assert "secret" not in repr(key_of("r", "en", "the secret text"))

"""Drift: what is compared with what, and when it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from alerts import ALERTS, selectors
from builders import BUNDLE, MANIFEST, signals
from decisions import event
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.telemetry.drift import BLOCK, BLOCKS, DECILES, LARGE, SMALL, Drift, stability_index


def text(at: int, **changes: Any) -> Signals:
    """The texts have difficulties like the bundle's reference: evenly from 0 to 1."""
    x = np.array([1, 0.1 * (at % 3), 0, 0], dtype=np.float32)
    given = {"difficulty": (at * 37 % 100 + 0.5) / 100, "domain": ("math", "law")[at % 2], "neighbors": x}
    return signals(revision=BUNDLE.revision, **{**given, **changes})


class Traffic:
    """A drift, and the decisions that it sees."""

    def __init__(self) -> None:
        self.drift = Drift({BUNDLE.revision: MANIFEST})
        self._event = event()

    def send(self, blocks: float, **changes: Any) -> dict[tuple[str, ...], float]:
        for at in range(int(blocks * BLOCK)):
            outcome = structs.replace(self._event.outcome, signals=text(at, **changes))
            self.drift.handle(structs.replace(self._event, outcome=outcome))
        return {key[1:]: value for key, value in self.drift.readings().items()}


def test_nothing_is_known_before_the_first_block() -> None:
    assert Traffic().send(0.9) == {}


def test_the_difficulty_is_compared_with_the_bundle_and_the_rest_with_the_start() -> None:
    traffic = Traffic()
    assert traffic.send(1) == {("difficulty", "bundle"): pytest.approx(0.0, abs=1e-3)}
    assert traffic.send(BLOCKS - 1).keys() == {
        ("difficulty", "bundle"),
        ("difficulty", "start"),
        ("domain", "start"),
        ("unknown", "start"),
        ("embedding", "start"),
    }


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({}, set()),
        ({"difficulty": 0.95}, {("difficulty", "bundle"), ("difficulty", "start")}),
        ({"domain": "other"}, {("domain", "start")}),
        ({"unknown": True}, {("unknown", "start")}),
        ({"neighbors": np.array([0, 0, 1, 0], dtype=np.float32)}, {("embedding", "start")}),
    ],
)
def test_each_kind_of_drift_moves_its_own_figure(change: dict[str, Any], moved: set[Any]) -> None:
    traffic = Traffic()
    traffic.send(BLOCKS)
    readings = traffic.send(BLOCKS, **change)
    assert {of for of, value in readings.items() if value > 0.25} == moved


def test_the_window_forgets() -> None:
    traffic = Traffic()
    traffic.send(BLOCKS)
    assert traffic.send(BLOCKS, domain="other")["domain", "start"] > 1
    assert traffic.send(BLOCKS)["domain", "start"] < 0.01


def test_the_baseline_stays_the_start() -> None:
    traffic = Traffic()
    traffic.send(BLOCKS)
    assert traffic.send(10 * BLOCKS, difficulty=0.95)["difficulty", "start"] > 1


def test_a_decision_without_signals_does_not_count() -> None:
    traffic = Traffic()
    plain = structs.replace(traffic._event.outcome, signals=None)
    for _ in range(2 * BLOCK):
        traffic.drift.handle(structs.replace(traffic._event, outcome=plain))
    assert traffic.drift.readings() == {}


def test_the_page_is_told_which_domains_moved_and_the_largest_index() -> None:
    traffic = Traffic()
    [before] = traffic.drift.shown()
    assert (before["texts"], before["rows"], before["moved"], before["worst"]) == (0, [], [], -1.0)
    traffic.send(BLOCKS)
    [calm] = traffic.drift.shown()
    assert calm["moved"] == []
    assert calm["worst"] < SMALL
    readings = traffic.send(BLOCKS, domain="other")
    [changed] = traffic.drift.shown()
    moved = {domain: (was, now) for domain, was, now in changed["moved"]}
    assert (moved["math"], moved["law"], moved["other"]) == ((0.5, 0.0), (0.5, 0.0), (0.0, 1.0))
    assert changed["worst"] == readings["domain", "start"] > LARGE
    watched = {(of, to) for of, to, _, limited in changed["rows"] if limited}
    assert watched == {("difficulty", "start"), ("domain", "start"), ("unknown", "start")}


def test_the_alert_has_the_limit_that_the_page_shows() -> None:
    assert ALERTS["SemrouteDrift"]["expr"].endswith(f"> {LARGE}")
    [watched] = selectors("SemrouteDrift")
    assert watched.labels == (("reference", "=", "start"), ("of", "!=", "embedding"))


CELLS = st.lists(st.integers(0, 10_000), min_size=DECILES, max_size=DECILES).map(
    lambda cells: np.asarray(cells, dtype=np.float64)
)


@given(CELLS, CELLS)
def test_the_index_is_symmetric_not_negative_and_zero_for_equal_shares(a: Any, b: Any) -> None:
    assert stability_index(a, b) == pytest.approx(stability_index(b, a))
    assert stability_index(a, b) >= -1e-12
    assert stability_index(a, a) == 0.0


def test_the_index_is_that_of_the_formula() -> None:
    live, reference = np.array([199.5, 799.5]), np.array([499.5, 499.5])
    assert stability_index(live, reference) == pytest.approx(
        (0.2 - 0.5) * np.log(0.2 / 0.5) + (0.8 - 0.5) * np.log(0.8 / 0.5)
    )

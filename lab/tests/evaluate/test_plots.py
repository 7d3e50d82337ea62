"""Figures of a report: each strategy beside what it is held against, on light and on dark pages."""

from __future__ import annotations

import re
from typing import Any

import matplotlib as mpl
import pytest
from semroute_lab.evaluate.plots import DARK, STYLE, as_svg, pair_strategy, pool_strategy

SHARE = [0.0, 0.5, 1.0]


def row(name: str, strategy: str | None, apgr: float) -> dict[str, Any]:
    return {"name": name, "strategy": strategy, "apgr": {"value": apgr, "low": None, "high": None}}


PAIR: dict[str, Any] = {
    "models": {"strong": 0.8, "weak": 0.6},
    "routers": [
        row("random", "weighted", 0.5),
        row("length", None, 0.55),
        row("ours", "threshold", 0.65),
        row("similarity", "similarity", 0.62),
        row("similarity, 200 nearest", "similarity", 0.63),
        row("oracle", None, 1.2),
        {"name": "always-weak", "strategy": "fixed", "strong_share": 0.0, "quality": 0.6},
    ],
    "curves": {
        "strong_share": SHARE,
        "quality": {
            name: [0.6, middle, 0.8]
            for name, middle in (
                ("random", 0.7),
                ("length", 0.71),
                ("ours", 0.75),
                ("similarity", 0.73),
                ("similarity, 200 nearest", 0.74),
                ("oracle", 0.85),
            )
        },
        "lift_interval": {"ours": {"low": [0.0, 0.1, 0.0], "high": [0.0, 0.3, 0.0]}},
    },
}

POOL: dict[str, Any] = {
    "routers": [
        {"name": name, "strategy": strategy, "area": {"value": 0.5}}
        for name, strategy in (("ZeroRouter", "weighted"), ("LearnedMap", "clusters"), ("oracle", None))
    ],
    "curves": {
        "cost": SHARE,
        "quality": {"ZeroRouter": [0.4, 0.5, 0.6], "LearnedMap": [0.4, 0.55, 0.6], "oracle": [0.7, 0.8, 0.8]},
    },
}


def texts(figure: Any) -> set[str]:
    return {note.get_text() for axes in figure.axes for note in axes.texts}


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("threshold", {"threshold  .650"}),
        ("similarity", {"similarity  .620", "similarity, 200 nearest  .630"}),
        ("weighted", {"weighted  .500", "fixed"}),
    ],
)
def test_a_strategy_is_drawn_beside_random_length_and_the_oracle_and_no_other(
    kind: str, own: set[str]
) -> None:
    beside = {"random  .500", "length  .550", "oracle  1.200", "always strong", "bands: 95 %"}
    expected = beside | own
    if kind == "weighted":
        expected -= {"random  .500"}
    assert texts(pair_strategy(PAIR, kind)) == expected


def test_a_strategy_that_was_not_measured_is_drawn_by_published_points() -> None:
    figure = pair_strategy(PAIR, "judge", [(0.35, 0.5)], "published there")
    assert "◆ published there" in texts(figure)
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(0.35, pytest.approx(0.7))]


def test_a_strategy_of_a_pool_is_drawn_beside_the_fixed_mix_and_the_oracle() -> None:
    assert texts(pool_strategy(POOL, "clusters")) == {
        "ZeroRouter  .500", "LearnedMap  .500", "oracle  .500",
    }  # fmt: skip


def test_an_svg_has_a_dark_color_for_paper_ink_and_every_line() -> None:
    with mpl.rc_context(STYLE):
        svg = as_svg(pair_strategy(PAIR, "similarity"))
    rules, drawing = svg.split("</style>", 1)
    assert "@media (prefers-color-scheme: dark)" in rules
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing))
    assert {"#ffffff", "#222222"} < used
    assert used <= set(DARK)
    assert all(f'[style*="fill: {color}"]' in rules for color in used)
    # Without a color of its own a text would stay black on black.
    groups = re.findall(r'<g id="text_\d+">\s*(?:<!--.*?-->\s*)?<g ([^>]*)>', drawing, re.S)
    assert groups
    assert all("fill: #" in group for group in groups)


def test_an_svg_is_the_same_on_every_run() -> None:
    with mpl.rc_context(STYLE):
        assert as_svg(pair_strategy(PAIR, "threshold")) == as_svg(pair_strategy(PAIR, "threshold"))

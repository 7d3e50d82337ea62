"""What all figures share: style, colours on light and dark pages, labels in place, SVG.

Colours are those of Okabe and Ito (2008) and a few more.
"""

from __future__ import annotations

import io
from typing import Any

COLUMN_INCHES = 3.4
"""Width of one column of a two-column page."""

PAGE_INCHES = 7.0
"""Width of both columns."""

GREY, INK, PALE = "#8a8a8a", "#222222", "#dddddd"
COLOURS = {
    "ours": "#0072B2",
    "bundle": "#0072B2",
    "length": "#D55E00",
    "domain table": "#009E73",
    "subject table": "#CC79A7",
    "similarity": "#56B4E9",
    "similarity, 200 nearest": "#E69F00",
    "factorization": "#7B3294",
    "clusters": "#004D40",
    "intent": "#A6761D",
    "threshold": "#8C564B",
    "judge": "#B22222",
    "oracle": INK,
    "random": GREY,
    "ZeroRouter": GREY,
    "kNN": "#D55E00",
    "K-means, Laplace": "#E69F00",
    "K-means, shrunk": "#009E73",
    "K-means, averaged": "#004D40",
    "LearnedMap": "#0072B2",
    "ridge, refitted": "#56B4E9",
    "clairvoyant": "#CC79A7",
    "tfidf + logistic": "#D55E00",
    "centroid": "#0072B2",
    "logistic": "#009E73",
}

DASHES = {"random": (4, 2), "ZeroRouter": (4, 2), "oracle": (1, 1.2), "clairvoyant": (5, 1.5, 1, 1.5)}

DARK = {
    "#ffffff": "#0d1117",
    INK: "#e6edf3",
    GREY: "#9198a1",
    PALE: "#3d444d",
    "#e6e6e6": "#2a313c",
    "#0072b2": "#58a6ff",
    "#d55e00": "#ff8f40",
    "#009e73": "#2fc79a",
    "#7b3294": "#c38be0",
    "#004d40": "#4fb8a6",
    "#8c564b": "#c08a7f",
    "#b22222": "#f0736a",
}
"""Colour on a white page to colour on a dark one; what is not here is the same on both."""

STYLE = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "semroute",
}

SMALL: dict[str, Any] = {"fontsize": 6}
"""A note within a panel."""

DPI = 300


def as_svg(figure: Any) -> str:
    """A figure as SVG that is dark where its reader prefers dark pages; call it within `STYLE`."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    # matplotlib writes colours into style attributes, which only an important rule overrules.
    rules = "\n".join(
        f'[style*="{what}: {light}"] {{{what}: {dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    return text.replace("</style>", f"\n@media (prefers-color-scheme: dark) {{\n{rules}\n}}</style>", 1)


def new_figure(height: float, width: float = COLUMN_INCHES) -> Any:
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line(axes: Any, x: Any, y: Any, name: str) -> None:
    """A curve in the colour and the dashes of its name; what is ours is bolder."""
    front = name in ("ours", "bundle", "LearnedMap")
    style: dict[str, Any] = {
        "color": COLOURS.get(name, INK),
        "lw": 1.6 if front else 1.1,
        "zorder": 3 + front,
    }
    if name in DASHES:
        style["dashes"] = DASHES[name]
    axes.plot(x, y, **style)


def key(
    axes: Any,
    entries: list[tuple[str, str]],
    x: float,
    y: float,
    top: bool = False,
    colours: dict[str, str] = COLOURS,
) -> None:
    """Coloured names with a figure each, stacked in a free corner: a legend without a box."""
    step = 9.0
    order = entries if top else entries[::-1]
    for i, (name, figure) in enumerate(order):
        axes.annotate(
            f"{name}  {figure}".rstrip(),
            (x, y),
            xycoords="axes fraction",
            zorder=10,
            xytext=(0, (-i if top else i) * step),
            textcoords="offset points",
            ha="right",
            va="top" if top else "bottom",
            color=colours.get(name, INK),
            fontweight="bold" if name in ("ours", "bundle") else "normal",
        )


def percent(axes: Any, which: str = "xy", symbol: str = " %") -> None:
    """Ticks of some axes in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for letter in which:
        axis = getattr(axes, f"{letter}axis")
        axis.set_major_locator(MaxNLocator(nbins=6 if symbol else 4, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:.3g}{symbol}".replace("-", "−"))
        )

"""The shipped Grafana dashboard shows metrics that exist; tests/e2e asks a real Envoy for its own."""

from __future__ import annotations

import re

import pytest
from dashboard import DOCUMENT, EXPRESSIONS, PANELS, grouped, metrics

from semroute_extproc.telemetry.prom import METRICS

NAMES = {
    f"semroute_{name}{suffix}": {*labels.split(), *(("le",) if suffix == "_bucket" else ())}
    for name, (kind, labels, _) in METRICS.items()
    for suffix in {"counter": ("_total",), "gauge": ("",)}.get(kind, ("_bucket", "_sum", "_count"))
}
CLUSTER_LABELS = {"envoy_cluster_name", "envoy_response_code_class"}


@pytest.mark.parametrize("target", EXPRESSIONS)
def test_an_expression_looks_only_at_metrics_and_labels_that_exist(target: str) -> None:
    expression = EXPRESSIONS[target]
    found = metrics(expression)
    assert found
    own = [(name, labels) for name, labels in found if name.startswith("semroute_")]
    for name, labels in own:
        assert name in NAMES
        assert labels.keys() <= NAMES[name]
    known = set().union(*(NAMES[name] for name, _ in own)) if own else CLUSTER_LABELS
    assert grouped(expression) <= known


@pytest.mark.parametrize("target", EXPRESSIONS)
def test_a_counter_is_shown_as_a_rate_and_a_gauge_is_not(target: str) -> None:
    expression = EXPRESSIONS[target]
    for name, _ in metrics(expression):
        counter = name.endswith(("_total", "_bucket")) or name.startswith("envoy_")
        assert (
            f"({name}"
            in re.sub(r"\{[^}]*\}", "", "".join(re.findall(r"(?:rate|increase)(\([^[]*)\[", expression)))
        ) == counter


def test_a_legend_names_labels_that_the_expression_keeps() -> None:
    for title, panel in PANELS.items():
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= grouped(target["expr"]), title


def test_panels_do_not_overlap_and_have_an_id_of_their_own() -> None:
    places = [panel["gridPos"] for panel in DOCUMENT["panels"]]
    cells = [
        (x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(p["x"] + p["w"] <= 24 for p in places)
    assert len({panel["id"] for panel in DOCUMENT["panels"]}) == len(places)

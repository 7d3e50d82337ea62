"""Every way in which a request stays undecided has a counter, an alert that looks at it, and a test."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alerts import ALERTS, DOCUMENT, FILE, ROOT, Selector, selectors, undecided
from kubernetes_objects import chart_objects, values
from ruamel.yaml import YAML

from semroute_extproc.errors import Exit
from semroute_extproc.outcome import Cause, Kind
from semroute_extproc.telemetry.prom import METRICS

SUPERVISOR = {
    "semroute_worker_ready": ("worker",),
    "semroute_worker_restarts_total": ("worker",),
    "semroute_worker_hangs_total": ("worker",),
    "semroute_workers_differ": (),
}
"""Metrics of `serve.supervisor` to their labels; tests/unit/serve/test_supervisor.py reads the page."""

NAMES = {
    f"semroute_{name}{'_total' if kind == 'counter' else ''}": labels.split()
    for name, (kind, labels, _) in METRICS.items()
} | SUPERVISOR
VALUES = {"cause": set(Cause), "outcome": set(Kind), "event": {"out_of_memory", "lost"}}
DECIDED = {Cause.RULE, Cause.STRATEGY, Cause.POOL, Cause.NAMED_MODEL, Cause.MODELS, Cause.STORED_RESPONSE}
"""Causes of requests that were decided or answered as they should be."""


def plain(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def named(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_looks_only_at_metrics_labels_and_values_that_exist(alert: str) -> None:
    found = selectors(alert)
    assert found
    for metric, labels in found:
        if metric.startswith("envoy_"):
            continue  # tests/e2e/test_alerts.py asks a real Envoy for them
        assert metric in NAMES
        for label, operator, value in labels:
            assert label in NAMES[metric]
            if label in VALUES and operator in ("=", "=~"):
                assert set(value.split("|")) <= VALUES[label]


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_severity_and_says_in_one_sentence_what_is_wrong(alert: str) -> None:
    rule = ALERTS[alert]
    assert alert.startswith("Semroute")
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"]["summary"].endswith(".")


def test_the_charts_rule_holds_the_same_alerts() -> None:
    assert "PrometheusRule" not in {each["kind"] for each in chart_objects(values("standalone"))}
    [made] = [each for each in chart_objects(values("everything")) if each["kind"] == "PrometheusRule"]
    assert made["spec"] == DOCUMENT
    assert made["metadata"]["labels"]["release"] == "monitoring"


def test_every_cause_has_one_row_with_the_alert_that_looks_at_it() -> None:
    rows = undecided()
    causes = [way for row in rows for way in named(row[0]) if way in set(Cause)]
    assert sorted(causes) == sorted(set(Cause) - DECIDED)
    for ways, counter, alert, _ in rows:
        for cause in named(ways) & set(Cause):
            assert "semroute_outcomes_total" in counter
            watched = [each for name in named(alert) for each in selectors(name)]
            assert any(_looks_at(each, cause) for each in watched), f"no alert of the row looks at {cause}"


def _looks_at(selector: Selector, cause: str) -> bool:
    kinds = (*Kind, "")
    if selector.metric == "semroute_internal_errors_total":
        return cause == Cause.INTERNAL_ERROR
    return bool(selector.labels) and any(
        selector.matches("semroute_outcomes_total", {"cause": cause, "outcome": kind}) for kind in kinds
    )


def test_every_row_names_counters_alerts_and_tests_that_exist() -> None:
    tests = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.M)
    }
    rows = undecided()
    assert len(rows) > 10
    for row in rows:
        _, counter, alert, test = row
        alerts = named(alert)
        assert alerts, row
        assert alerts <= ALERTS.keys()
        watched = {each.metric for name in alerts for each in selectors(name)}
        counters = {name for name in named(counter) if name.startswith(("semroute_", "envoy_"))}
        assert counters, row
        assert counters & watched, row
        assert named(test), row
        assert named(test) <= tests, named(test) - tests


def test_every_status_of_a_process_that_could_not_serve_has_a_row() -> None:
    [row] = [row for row in undecided() if "SemrouteDown" in row[2]]
    assert set(re.findall(r"\b(\d+)\b", row[0])) == {str(int(Exit.UNAVAILABLE)), str(int(Exit.CONFIG))}


def test_every_alert_is_in_the_page_of_metrics() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert [name for name in ALERTS if f"| `{name}` |" not in page] == []


# --- Prometheus evaluates the rules ---


def series(selector: Selector, values: str) -> dict[str, str]:
    """A series that the selector matches; a negative matcher is met by any other value."""
    labels = {
        key: value.split("|")[0] if operator in ("=", "=~") else "other"
        for key, operator, value in selector.labels
    }
    written = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{selector.metric}{{{written}}}", "values": values}


def cases(alert: str) -> Iterator[tuple[bool, list[dict[str, str]]]]:
    """Whether the alert fires, and the series that it sees, one sample a minute for two hours."""
    first, *others = selectors(alert)
    if alert == "SemrouteDown":
        yield True, [{"series": "up", "values": "1x120"}]
        yield False, [series(first, "1x120")]
        return
    gauge = "[" not in ALERTS[alert]["expr"]
    wanted = re.search(r"(==|>) ([\d.]+)$", ALERTS[alert]["expr"])
    assert wanted is not None
    if gauge:
        bad = float(wanted[2]) if wanted[1] == "==" else float(wanted[2]) + 0.05
        yield True, [series(first, f"{bad:g}x120")]
        yield False, [series(first, f"{1 - bad if wanted[1] == '==' else 0:g}x120")]
        return
    # What the first selector leaves out of the total that its rate is divided by.
    left_out = tuple((label, "=", value) for label, operator, value in first.labels if operator == "!~")
    total = [each for each in others if " / " in ALERTS[alert]["expr"].replace("\n", " ")]
    rest = [series(Selector(each.metric, left_out), "0+20x120") for each in total]
    yield True, [series(first, "0+60x120"), *rest]
    yield False, [series(first, "5x120"), *rest]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)")
def test_each_alert_fires_for_what_it_is_about_and_only_then(tmp_path: Path) -> None:
    tests = []
    for alert in ALERTS:
        firing = f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})'
        for fires, seen in cases(alert):
            samples = [{"labels": "{}", "value": 1}] if fires else []
            check = {"expr": firing, "eval_time": "119m", "exp_samples": samples}
            tests.append({"interval": "1m", "input_series": seen, "promql_expr_test": [check]})
    path = tmp_path / "tests.yaml"
    with path.open("w") as file:
        YAML().dump({"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": tests}, file)
    command = ["promtool", "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

"""The metrics of several workers as one page."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.serve.exposition import merged
from semroute_extproc.telemetry.prom import PrometheusSink


def test_each_sample_says_whose_it_is_below_one_head() -> None:
    page = '# HELP a Text.\n# TYPE a counter\na{x="1"} 2.0\na{x="{"} 3.0\n'
    page += "# HELP b Text.\n# TYPE b gauge\nb 4.0\n"
    assert merged({"0": page, "1": page}) == (
        '# HELP a Text.\n# TYPE a counter\n'
        'a{worker="0",x="1"} 2.0\na{worker="0",x="{"} 3.0\na{worker="1",x="1"} 2.0\na{worker="1",x="{"} 3.0\n'
        '# HELP b Text.\n# TYPE b gauge\nb{worker="0"} 4.0\nb{worker="1"} 4.0\n'
    )  # fmt: skip


def test_a_metric_that_only_one_worker_has_is_there() -> None:
    assert merged({"0": "", "1": "# TYPE a gauge\na 1\n"}) == '# TYPE a gauge\na{worker="1"} 1\n'


def test_no_pages_are_no_page() -> None:
    assert merged({}) == ""


def test_the_page_of_real_sinks_is_read_by_prometheus_own_parser() -> None:
    sinks = [PrometheusSink(), PrometheusSink()]
    sinks[0].inflight.set(3)
    sinks[1].inflight.set(4)
    page = merged({str(number): sink.exposition().decode() for number, sink in enumerate(sinks)})
    families = {family.name: family for family in text_string_to_metric_families(page)}
    values = {
        sample.labels["worker"]: sample.value for sample in families["semroute_inflight_streams"].samples
    }
    assert values == {"0": 3.0, "1": 4.0}
    assert families["semroute_decision_duration_seconds"].type == "histogram"

"""The metrics of several workers as one page."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import httpx2
from builders import config
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from semroute_extproc.events import CacheLookup
from semroute_extproc.serve.supervisor import Supervisor
from semroute_extproc.telemetry.prom import PrometheusSink

DROPPED = (
    r"# HELP semroute_log_lines_dropped_total .*\n# TYPE .*\n"
    r'semroute_log_lines_dropped_total\{worker="supervisor"\} 0\.0\n$'
)
"""The supervisor's own, if no worker has this metric."""


class Client:
    """Answers with a metrics page, if there is one."""

    def __init__(self, page: str | None) -> None:
        self.page = page

    def get(self, _: str) -> Any:
        if self.page is None:
            raise httpx2.ConnectError("gone")
        return SimpleNamespace(text=self.page)


def page_of(*pages: str | None) -> str:
    """What the workers' pages become, without the supervisor's own metrics."""
    supervisor = Supervisor(config(server={"workers": len(pages)}), "w{worker}.admin", [])
    for worker, page in zip(supervisor.workers, pages, strict=True):
        client: Any = Client(page)
        worker.client = client
    page = generate_latest(supervisor).decode().partition("# HELP semroute_worker_ready")[0]
    return re.sub(DROPPED, "", page)


def test_each_sample_says_whose_it_is_below_one_head() -> None:
    page = '# HELP a_total Text.\n# TYPE a_total counter\na_total{x="1"} 2.0\na_total{x="{\\""} 3.0\n'
    page += "# HELP b Text.\n# TYPE b gauge\nb 4.0\n"
    assert page_of(page, page) == (
        '# HELP a_total Text.\n# TYPE a_total counter\n'
        'a_total{worker="0",x="1"} 2.0\na_total{worker="0",x="{\\""} 3.0\n'
        'a_total{worker="1",x="1"} 2.0\na_total{worker="1",x="{\\""} 3.0\n'
        '# HELP b Text.\n# TYPE b gauge\nb{worker="0"} 4.0\nb{worker="1"} 4.0\n'
    )  # fmt: skip


def test_a_metric_that_only_one_worker_has_is_there() -> None:
    page = page_of("", "# HELP a Text.\n# TYPE a gauge\na 1\n")
    assert page == '# HELP a Text.\n# TYPE a gauge\na{worker="1"} 1.0\n'


def test_workers_that_do_not_answer_have_no_page() -> None:
    assert page_of(None, None) == ""


def test_the_page_of_real_sinks_keeps_every_name_and_is_read_by_prometheus_own_parser() -> None:
    sinks = [PrometheusSink(), PrometheusSink()]
    for count, sink in enumerate(sinks, 3):
        sink.observe("inflight_streams", lambda count=count: count)  # type: ignore[misc]
        sink.handle(CacheLookup(True))
    pages = [sink.exposition().decode() for sink in sinks]
    families = {family.name: family for family in text_string_to_metric_families(page_of(*pages))}
    values = {
        sample.labels["worker"]: sample.value for sample in families["semroute_inflight_streams"].samples
    }
    assert values == {"0": 3.0, "1": 4.0}
    assert families["semroute_decision_duration_seconds"].type == "histogram"
    names = {line.partition("{")[0].partition(" ")[0] for line in pages[0].splitlines() if line[0] != "#"}
    assert names == {sample.name for family in families.values() for sample in family.samples}

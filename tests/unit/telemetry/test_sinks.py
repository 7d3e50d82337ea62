"""What telemetry says, and above all what it does not."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from builders import BUNDLE, raw
from msgspec import structs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from semroute_extproc.encoder.signals import calibrate
from semroute_extproc.events import Decided
from semroute_extproc.outcome import Kind, Outcome, Stage
from semroute_extproc.outcome import facts as metadata
from semroute_extproc.policy.context import Decision
from semroute_extproc.policy.shadow import Agreement, Shadow
from semroute_extproc.request.view import Api, RequestView, Turn
from semroute_extproc.settings.process import Telemetry
from semroute_extproc.telemetry import otel, prom
from semroute_extproc.telemetry.log import LogSink, configure
from semroute_extproc.telemetry.otel import OtelSink
from semroute_extproc.telemetry.prom import PrometheusSink

STATUS = {
    "pools": {"large": {"pressure": 0.5, "level": 0.6, "known": True}},
    "budgets": {
        "pair": {
            "unit": "share",
            "target": 0.3,
            "realised": 0.31,
            "leaning": -0.2,
            "requests": 5,
        }
    },
    "sessions": {"entries": 7},
}
SECRET = "the patient's name is Ada"


def event(kind: Kind = Kind.ROUTED, cause: str = "strategy", parents: tuple[str, ...] = ()) -> Decided:
    outcome = Outcome(
        kind,
        cause,
        pool="small",
        cluster="vllm-small",
        model="org/small",
        reason="difficulty 0.50 < 0.70",
        body=SECRET.encode(),
        decision=Decision("small", "difficulty 0.50 < 0.70", rule="r", strategy="pair"),
        view=RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", SECRET),)),
        signals=calibrate(BUNDLE, raw(truncated=True), "en"),
        text=SECRET,
        stages=(Stage("parse", 0.0, 0.1), Stage("encode", 0.1, 4.0)),
        total_ms=4.2,
    )
    return Decided(outcome, "id-1", "/v1/chat/completions", parents, 1_000, 2_000, 9_000_000, False)


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(prompts: bool) -> str:
        settings = Telemetry(log_format="json", log_prompts=prompts)
        configure(settings)
        LogSink(settings).decided(event())
        return capsys.readouterr().err

    yield run
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


def test_a_decision_is_one_json_line_with_its_facts(logged: Any) -> None:
    [line] = logged(prompts=False).splitlines()
    facts = json.loads(line)
    assert facts["event"] == "route.decided"
    assert (facts["pool"], facts["rule"], facts["request_id"]) == ("small", "r", "id-1")
    assert facts["encode_ms"] == 4.0


def test_no_prompt_is_logged_unless_it_was_asked_for(logged: Any) -> None:
    assert SECRET not in logged(prompts=False)
    assert SECRET in logged(prompts=True)


def test_the_watch_on_the_configuration_does_not_log_every_change_it_sees(
    logged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log in the watched directory is such a change."""
    logged(prompts=False)
    logging.getLogger("watchfiles.main").info("1 change detected")
    assert capsys.readouterr().err == ""
    logging.getLogger("watchfiles.main").warning("something is wrong")
    assert "something is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parents", "trace_id"),
    [
        ((f"00-{'a' * 32}-{'1' * 16}-01",), "a" * 32),
        (("Bearer sk-0123456789abcdef0123456789abcdef", f"00-{'b' * 32}-{'1' * 16}-01"), "b" * 32),
        (("Bearer sk-0123456789abcdef0123456789abcdef",), None),
        ((f"00-{'0' * 32}-{'1' * 16}-01",), None),
    ],
)
def test_the_trace_is_that_of_a_well_formed_parent_and_nothing_else_a_client_sent(
    parents: tuple[str, ...], trace_id: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    LogSink(Telemetry(log_format="json")).decided(event(parents=parents))
    assert json.loads(capsys.readouterr().err).get("trace_id") == trace_id


def test_no_prompt_is_in_a_metric() -> None:
    sink = PrometheusSink()
    sink.decided(event())
    assert SECRET.encode() not in sink.exposition()


def test_decisions_are_counted_with_their_labels() -> None:
    sink = PrometheusSink()
    sink.decided(event())
    sink.decided(event(Kind.FALLBACK, "deadline"))
    text = sink.exposition().decode()
    labels = 'domain="math",outcome="routed",pool="small",rule="r",strategy="pair"'
    assert f"semroute_decisions_total{{{labels}}} 1.0" in text
    assert 'semroute_fallbacks_total{reason="deadline"} 1.0' in text
    assert "semroute_truncated_total 2.0" in text
    assert 'semroute_stage_duration_seconds_count{stage="encode"} 2.0' in text


def spans(*parents: str) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    sink = OtelSink(exporter)
    sink.decided(event(parents=parents))
    sink._provider.force_flush()
    return list(exporter.get_finished_spans())


def test_a_decision_is_a_span_with_its_stages_below_it() -> None:
    *stages, root = spans()
    assert root.name == "envoy.service.ext_proc.v3.ExternalProcessor/Process"
    assert [span.name for span in stages] == ["semroute.parse", "semroute.encode"]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in stages)
    assert root.attributes is not None
    assert root.attributes["semroute.pool"] == "small"
    assert root.attributes["gen_ai.original.model"] == "auto"
    assert SECRET not in str(root.attributes)
    assert stages[1].start_time == 2_000 + 100_000


def test_the_nearest_valid_parent_is_taken() -> None:
    envoy, client = f"00-{'a' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-{'2' * 16}-01"
    for given, span_id in (((envoy, client), "1" * 16), (("rubbish", client), "2" * 16)):
        root = spans(*given)[-1]
        assert root.parent is not None
        assert f"{root.parent.span_id:016x}" == span_id


def test_an_unsampled_parent_gives_no_spans() -> None:
    assert spans(f"00-{'a' * 32}-{'1' * 16}-00") == []


def test_a_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Stuck(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            release.wait(20)
            return super().export(spans)

    monkeypatch.setattr(otel, "CLOSE_SECONDS_MAX", 0.1)
    sink = OtelSink(Stuck())
    sink.decided(event())
    started = time.monotonic()
    sink.close()
    assert time.monotonic() - started < 5
    release.set()


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_variables(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The frames of a failed decision hold the prompt."""
    configure(Telemetry.model_validate({"log_format": style}))

    def fail(prompt: str) -> None:
        raise RuntimeError(f"failed on {len(prompt)} characters")

    try:
        fail(SECRET)
    except RuntimeError:
        structlog.get_logger("test").exception("decision.failed")
    shown = capsys.readouterr().err
    assert "failed on 25 characters" in shown
    assert "Ada" not in shown


def test_the_controllers_are_read_when_the_metrics_are() -> None:
    sink = PrometheusSink()
    sink.watch_controllers(lambda: STATUS)
    text = sink.exposition().decode()
    for line in (
        'semroute_pool_pressure{pool="large"} 0.5',
        'semroute_budget_leaning{strategy="pair"} -0.2',
        'semroute_budget_target{strategy="pair"} 0.3',
        'semroute_budget_realised{strategy="pair"} 0.31',
        "semroute_session_entries 7.0",
    ):
        assert line in text
    sink.watch_controllers(lambda: {"pools": {}, "budgets": {}, "sessions": None})
    assert "semroute_pool_pressure{" not in sink.exposition().decode()


def test_scrapes_at_the_same_time_see_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins to set the gauges anew while the first one is about to write them."""
    begun, cleared, written = threading.Event(), threading.Event(), threading.Event()
    write = prom.generate_latest

    def generate(registry: Any) -> bytes:
        if not begun.is_set():
            begun.set()
            cleared.wait(0.3)
        return write(registry)

    class Budgets(dict[str, Any]):
        def items(self) -> Any:
            if begun.is_set():
                cleared.set()
                written.wait(5)
            return super().items()

    sink = PrometheusSink()
    sink.watch_controllers(lambda: {**STATUS, "budgets": Budgets(STATUS["budgets"])})
    monkeypatch.setattr(prom, "generate_latest", generate)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(sink.exposition)
        begun.wait(5)
        second = threads.submit(sink.exposition)
        page = first.result(10)
        written.set()
        assert b'semroute_budget_leaning{strategy="pair"}' in page
        assert b'semroute_budget_leaning{strategy="pair"}' in second.result(10)


def test_sessions_and_shadows_are_counted_and_told() -> None:
    shadow = Shadow("main", "other", Agreement.DIFFER, "large", "why")
    told = event()
    outcome = structs.replace(told.outcome, policy="main", session="kept", shadows=(shadow,))
    sink = PrometheusSink()
    sink.decided(structs.replace(told, outcome=outcome))
    text = sink.exposition().decode()
    assert 'semroute_sessions_total{result="kept"} 1.0' in text
    labels = 'agreement="differ",policy="main",pool="large",shadow="other"'
    assert f"semroute_shadow_decisions_total{{{labels}}} 1.0" in text
    facts = metadata(outcome)
    assert (facts["policy"], facts["session"], facts["shadow"]) == ("main", "kept", "other=large")


def test_the_metadata_says_whose_reasoning_effort_it_is() -> None:
    base = event().outcome
    assert base.view is not None
    own = dataclasses.replace(base.view, reasoning_set=True)
    for override, view, says in ((False, base.view, "policy"), (False, own, "client"), (True, own, "policy")):
        decision = Decision("small", "why", reasoning="high", override=override)
        facts = metadata(structs.replace(base, decision=decision, view=view))
        assert (facts["reasoning"], facts["reasoning_from"]) == ("high", says)


def test_a_gpu_that_is_lost_shows_until_it_is_back() -> None:
    sink = PrometheusSink()
    for event in ("out_of_memory", "lost", "on_cpu"):
        sink.gpu_event("b", event)
    assert 'semroute_gpu_lost{bundle="b"} 1.0' in sink.exposition().decode()
    sink.gpu_event("b", "recovered")
    page = sink.exposition().decode()
    assert 'semroute_gpu_lost{bundle="b"} 0.0' in page
    assert 'semroute_gpu_events_total{bundle="b",event="out_of_memory"} 1.0' in page


def test_only_the_provider_that_encodes_now_is_named() -> None:
    sink = PrometheusSink()
    facts = {"bundle": "b", "revision": "r", "graph": "g", "language": "any"}
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        sink.set_models([{**facts, "provider": provider}])
    page = sink.exposition().decode()
    assert "CPUExecutionProvider" in page
    assert "CUDAExecutionProvider" not in page

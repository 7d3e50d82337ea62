"""What telemetry says, and above all what it does not."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
import structlog
from builders import BUNDLE, raw
from msgspec import structs
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from semroute_extproc.encoder.signals import calibrate
from semroute_extproc.events import (
    Accounted,
    CacheLookup,
    Decided,
    EncoderLost,
    Event,
    Failed,
    OutOfMemory,
    ProfilesRead,
    RecordsWritten,
    Reloaded,
    ReloadRejected,
    Scraped,
    SessionStoreError,
    Shadowed,
    StreamRefused,
)
from semroute_extproc.outcome import Kind, Outcome, Stage
from semroute_extproc.outcome import facts as metadata
from semroute_extproc.policy.context import Agreement, Decision, Shadow
from semroute_extproc.request.envelope import LeftOut
from semroute_extproc.request.handover import Handover
from semroute_extproc.request.usage import Usage
from semroute_extproc.request.view import Api, RequestView, Turn
from semroute_extproc.settings.process import Telemetry
from semroute_extproc.telemetry import prom
from semroute_extproc.telemetry.bus import to_all
from semroute_extproc.telemetry.log import VALUE_CHARACTERS_MAX, WRITER, LogSink, configure
from semroute_extproc.telemetry.otel import OtelSink, attributes
from semroute_extproc.telemetry.prom import PrometheusSink

SECRET = "the patient's name is Ada"


def event(kind: Kind = Kind.ROUTED, cause: str = "strategy", parents: tuple[str, ...] = ()) -> Decided:
    outcome = Outcome(
        kind,
        cause,
        pool="small",
        cluster="vllm-small",
        model="org/small",
        reason="difficulty 0.50 is below 0.70",
        body=SECRET.encode(),
        decision=Decision("small", "difficulty 0.50 is below 0.70", rule="r", strategy="pair"),
        view=RequestView(Api.CHAT_COMPLETIONS, "auto", (Turn("user", SECRET),)),
        signals=calibrate(BUNDLE, raw(truncated=True), "en"),
        text=SECRET,
        left_out=(LeftOut("block", 40), LeftOut("document", 2)),
        housekeeping="title",
        stages=(Stage("parse", 0.0, 0.1), Stage("encode", 0.1, 4.0)),
        total_ms=4.2,
    )
    return Decided(outcome, "id-1", "/v1/chat/completions", parents, 1_000, 2_000, 9_000_000, False)


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


@pytest.fixture
def written(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    def read() -> str:
        WRITER.start()
        assert WRITER.drain()
        return capfd.readouterr().err

    read()  # lines of earlier tests: the process has one log
    return read


@pytest.fixture
def logged(written: Callable[[], str]) -> Any:
    def run(prompts: bool) -> str:
        settings = Telemetry(log_format="json", log_prompts=prompts)
        configure(settings)
        LogSink(settings).handle(event())
        return written()

    return run


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
    logged: Any, written: Callable[[], str]
) -> None:
    """A log in the watched directory is such a change."""
    logged(prompts=False)
    logging.getLogger("watchfiles.main").info("1 change detected")
    assert written() == ""
    logging.getLogger("watchfiles.main").warning("something is wrong")
    assert "something is wrong" in written()


def test_a_path_and_a_request_id_have_a_bound_in_the_log(written: Callable[[], str]) -> None:
    """Envoy accepts 60 kB of them."""
    long = structs.replace(event(), request_id="i" * 60_000, path="/" + "p" * 60_000)
    LogSink(Telemetry(log_format="json")).handle(long)
    facts = json.loads(written())
    assert (len(facts["request_id"]), len(facts["path"])) == (VALUE_CHARACTERS_MAX, VALUE_CHARACTERS_MAX)


CONTROLS = "\x9b2J\x85forged\u2028\u202e\U000e0001Åsa日本"
"""Control sequences of terminals, line separators, reversed text; and what is printable beyond ASCII."""


@pytest.mark.parametrize("form", ["json", "console"])
def test_text_of_clients_neither_ends_a_line_nor_controls_a_terminal(
    written: Callable[[], str], form: Literal["json", "console"]
) -> None:
    settings = Telemetry(log_format=form)
    configure(settings)
    LogSink(settings).handle(structs.replace(event(), request_id=CONTROLS))
    [line] = written().splitlines()
    assert all(c.isprintable() for c in line if not c.isascii()), "only the console's own colors control"
    assert "Åsa日本" in line
    if form == "json":
        assert json.loads(line)["request_id"] == CONTROLS, "nothing is lost"


def test_no_line_shows_the_secrets_of_a_url(written: Callable[[], str]) -> None:
    configure(Telemetry(log_format="json"))
    logging.getLogger("opentelemetry").warning("cannot export to http://ann:pw1@host:4317/x?token=pw2")
    structlog.get_logger("test").info("x", url="http://pw3@host/")
    shown = written()
    assert "host:4317/x?" in shown
    assert "pw" not in shown


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
    parents: tuple[str, ...], trace_id: str | None, written: Callable[[], str]
) -> None:
    LogSink(Telemetry(log_format="json")).handle(event(parents=parents))
    assert json.loads(written()).get("trace_id") == trace_id


def test_a_pause_of_the_decision_log_is_logged_once_and_lost_records_are_counted() -> None:
    sink = PrometheusSink()
    told = [RecordsWritten(3), RecordsWritten(2, "disk", "log: no space"), RecordsWritten(1, "disk")]
    with capture_logs() as lines:
        for each in told:
            LogSink(Telemetry()).handle(each)
            sink.handle(each)
    assert [(line["event"], line["problem"]) for line in lines] == [("decision_log.paused", "log: no space")]
    page = sink.exposition().decode()
    assert "semroute_decision_log_records_total 3.0" in page
    assert 'semroute_decision_log_lost_total{why="disk"} 3.0' in page


def test_no_prompt_is_in_a_metric() -> None:
    sink = PrometheusSink()
    sink.handle(event())
    assert SECRET.encode() not in sink.exposition()


def test_decisions_are_counted_with_their_labels() -> None:
    sink = PrometheusSink()
    sink.handle(event())
    sink.handle(event(Kind.FALLBACK, "deadline"))
    text = sink.exposition().decode()
    labels = 'domain="math",outcome="routed",pool="small",rule="r",strategy="pair"'
    assert f"semroute_decisions_total{{{labels}}} 1.0" in text
    assert 'semroute_fallbacks_total{reason="deadline"} 1.0' in text
    assert "semroute_truncated_total 2.0" in text
    assert 'semroute_left_out_characters_total{kind="block"} 80.0' in text
    assert 'semroute_housekeeping_total{kind="title"} 2.0' in text
    assert 'semroute_stage_duration_seconds_count{stage="encode"} 2.0' in text


def test_a_failover_is_counted_by_pools_and_failure_and_told() -> None:
    failed = Handover(("large", "eyes"), {}, "503")
    decided = event()
    decided = structs.replace(decided, outcome=structs.replace(decided.outcome, failed=failed))
    sink = PrometheusSink()
    sink.handle(decided)
    counted = 'semroute_failovers_total{failure="503",pool="eyes",to="small"} 1.0'
    assert counted in sink.exposition().decode()
    told = metadata(decided.outcome)
    assert (told["failed_pools"], told["failure"]) == ("large eyes", "503")


def spans(*parents: str) -> list[ReadableSpan]:
    exporter = InMemorySpanExporter()
    sink = OtelSink(exporter)
    sink.handle(event(parents=parents))
    sink.close()
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


def test_a_model_that_a_client_invented_is_cut_in_a_span() -> None:
    """It is as long as a body, and spans wait for the collector."""
    outcome = event().outcome
    assert outcome.view is not None
    view = dataclasses.replace(outcome.view, model="m" * 10_000)
    values = attributes(structs.replace(outcome, view=view), "id")
    assert len(str(values["gen_ai.original.model"])) == VALUE_CHARACTERS_MAX


def test_the_nearest_valid_parent_is_taken() -> None:
    envoy, client = f"00-{'a' * 32}-{'1' * 16}-01", f"00-{'a' * 32}-{'2' * 16}-01"
    for given, span_id in (((envoy, client), "1" * 16), (("rubbish", client), "2" * 16)):
        root = spans(*given)[-1]
        assert root.parent is not None
        assert f"{root.parent.span_id:016x}" == span_id


def test_an_unsampled_parent_gives_no_spans() -> None:
    assert spans(f"00-{'a' * 32}-{'1' * 16}-00") == []


def test_a_collector_that_is_gone_does_not_hold_up_the_end() -> None:
    release = threading.Event()

    class Stuck(InMemorySpanExporter):
        def export(self, spans: Any) -> Any:
            release.wait(20)
            return super().export(spans)

    sink = OtelSink(Stuck())
    sink.handle(event())
    started = time.monotonic()
    sink.close(0.1)
    assert time.monotonic() - started < 5
    release.set()


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_traceback_shows_no_variables(style: str, written: Callable[[], str]) -> None:
    """The frames of a failed decision hold the prompt."""
    configure(Telemetry.model_validate({"log_format": style}))

    def fail(prompt: str) -> None:
        raise RuntimeError(f"failed on {len(prompt)} characters")

    try:
        fail(SECRET)
    except RuntimeError:
        structlog.get_logger("test").exception("decision.failed")
    shown = written()
    assert "failed on 25 characters" in shown
    assert "Ada" not in shown


def test_observed_gauges_are_read_when_the_metrics_are_and_forget_what_is_gone() -> None:
    sink = PrometheusSink()
    pressures = {("large",): 0.5, ("small",): 0.0}
    sink.observe("pool_pressure", lambda: pressures)
    sink.observe("queue_depth", lambda: 7)
    text = sink.exposition().decode()
    assert 'semroute_pool_pressure{pool="large"} 0.5' in text
    assert "semroute_queue_depth 7.0" in text
    del pressures["large",]
    text = sink.exposition().decode()
    assert 'semroute_pool_pressure{pool="large"}' not in text
    assert 'semroute_pool_pressure{pool="small"}' in text


def test_scrapes_at_the_same_time_see_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one begins to set the gauges again while the first one is about to write them."""
    begun, cleared, written = threading.Event(), threading.Event(), threading.Event()
    write = prom.generate_latest

    def generate(registry: Any) -> bytes:
        if not begun.is_set():
            begun.set()
            cleared.wait(0.3)
        return write(registry)

    class Budgets(dict[tuple[str, ...], float]):
        def items(self) -> Any:
            if begun.is_set():
                cleared.set()
                written.wait(5)
            return super().items()

    sink = PrometheusSink()
    sink.observe("budget_leaning", lambda: Budgets({("pair",): -0.2}))
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
    sink.handle(structs.replace(told, outcome=outcome))
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


def test_every_other_event_changes_its_metric() -> None:
    sink = PrometheusSink()
    for event, line in (
        (CacheLookup(True), 'semroute_cache_total{result="hit"} 1.0'),
        (CacheLookup(False), 'semroute_cache_total{result="miss"} 1.0'),
        (Failed("decision.failed"), "semroute_internal_errors_total 1.0"),
        (StreamRefused(), "semroute_refused_streams_total 1.0"),
        (OutOfMemory("b"), 'semroute_gpu_events_total{bundle="b",event="out_of_memory"} 1.0'),
        (EncoderLost("b"), 'semroute_gpu_events_total{bundle="b",event="lost"} 1.0'),
        (EncoderLost("b"), 'semroute_gpu_lost{bundle="b"} 1.0'),
        (SessionStoreError("timeout"), 'semroute_session_remote_errors_total{what="timeout"} 1.0'),
        (
            Shadowed(Shadow("main", "other", Agreement.AGREE, "small", "why")),
            'agreement="agree",policy="main",pool="small",shadow="other"} 1.0',
        ),
        (Reloaded("a" * 64, 2), f'semroute_config_info{{generation="2",sha256="{"a" * 12}"}} 1.0'),
        (Reloaded("a" * 64, 2), "semroute_config_last_reload_successful 1.0"),
        (ReloadRejected(["why"]), "semroute_config_last_reload_successful 0.0"),
        (Reloaded("b" * 64, 2, changed=False), "semroute_config_last_reload_successful 1.0"),
    ):
        sink.handle(event)
        assert line in sink.exposition().decode(), event
    assert f'sha256="{"b" * 12}"' not in sink.exposition().decode()


def test_a_gauge_that_a_pool_no_longer_has_disappears() -> None:
    sink = PrometheusSink()
    sink.handle(Scraped("large", {"running": 3.0, "waiting": 1.0}, failed=False))
    sink.handle(Scraped("large", {"running": 4.0}, failed=False))
    page = sink.exposition().decode()
    assert 'semroute_pool_load{gauge="running",pool="large"} 4.0' in page
    assert 'gauge="waiting"' not in page
    sink.handle(Scraped("large", {}, failed=True))
    page = sink.exposition().decode()
    assert "semroute_pool_load{" not in page
    assert 'semroute_pool_scrape_failures_total{pool="large"} 1.0' in page


def test_the_profiles_of_a_strategy_that_is_gone_are_forgotten() -> None:
    sink = PrometheusSink()
    sink.handle(ProfilesRead("s", 3, ["broken"]))
    page = sink.exposition().decode()
    assert 'semroute_profiles{strategy="s"} 3.0' in page
    assert 'semroute_profiles_rejected{strategy="s"} 1.0' in page
    sink.handle(ProfilesRead("s", None))
    assert 'strategy="s"' not in sink.exposition().decode()


def test_what_an_operator_should_know_is_logged_under_its_name() -> None:
    sink = LogSink(Telemetry(log_format="json"))
    shadow = Shadow("main", "other", Agreement.AGREE, "small", "why")
    decided = event()
    events: list[Event] = [
        Reloaded("a" * 64, 1),
        Reloaded("a" * 64, 2),
        ReloadRejected(["why"]),
        Reloaded("a" * 64, 2, changed=False),
        ProfilesRead("s", 1, problems=["p"], models=["m"], thin=["t"]),
        ProfilesRead("s", None),
        EncoderLost("b", "three passes failed"),
        Shadowed(shadow),
        CacheLookup(True),
    ]
    with capture_logs() as logs:
        for each in events:
            sink.handle(each)
    assert [entry["event"] for entry in logs] == [
        "config.reloaded",
        "config.rejected",
        "config.restored",
        "profiles.read",
        "profile.rejected",
        "profile.thin",
        "gpu.lost",
        "shadow.decided",
    ]
    with capture_logs() as quiet:
        sink = LogSink(Telemetry(log_format="json", log_decisions=False))
        sink.handle(Shadowed(shadow))
        sink.handle(decided)
    assert quiet == []


def broken(_: Event) -> None:
    raise ZeroDivisionError


def test_a_sink_that_fails_is_reported_once_and_stops_no_other() -> None:
    first: list[Event] = []
    last: list[Event] = []
    told = event()
    to_all(first.append, broken, broken, last.append)(told)
    assert first == [told, Failed("telemetry.failed", "id-1")]
    assert last == [Failed("telemetry.failed", "id-1"), told]


def test_a_failure_of_a_sink_is_logged_with_its_traceback(written: Callable[[], str]) -> None:
    settings = Telemetry(log_format="json")
    configure(settings)
    to_all(broken, LogSink(settings).handle)(CacheLookup(True))
    [line] = written().splitlines()
    assert json.loads(line)["event"] == "telemetry.failed"
    assert "ZeroDivisionError" in line


def answer(**changes: Any) -> Accounted:
    told = Accounted(
        "id-1",
        Api.CHAT_COMPLETIONS,
        pool="small",
        rule="r",
        model="auto",
        tenant="acme",
        served="org/small",
        finish="tool_calls",
        problem="",
        usage=Usage(input=120, output=7, cached=100, reasoning=3),
        dollars=0.25,
        baseline_dollars=1.0,
        cache_saved_dollars=0.125,
        first_token_seconds=0.5,
        tokens_per_second=40.0,
        parents=(f"00-{'a' * 32}-{'1' * 16}-01",),
        started_ns=1_000,
        ended_ns=9_000,
    )
    return structs.replace(told, **changes)


def test_an_answer_is_counted_by_pool_rule_model_and_tenant() -> None:
    sink = PrometheusSink()
    sink.handle(answer())
    sink.handle(answer(usage=Usage(input=10, output=5, estimated=True), problem="cut", finish=""))
    page = sink.exposition().decode()
    labels = 'model="auto",pool="small",rule="r",tenant="acme"'
    counts = {"input": 130, "cached_input": 100, "output": 12, "reasoning_output": 3, "estimated_output": 5}
    for kind, count in counts.items():
        assert f'semroute_tokens_total{{{labels},type="{kind}"}} {count}.0' in page
    assert f"semroute_dollars_total{{{labels}}} 0.5" in page
    assert f"semroute_baseline_dollars_total{{{labels}}} 2.0" in page
    assert f"semroute_cache_saved_dollars_total{{{labels}}} 0.25" in page
    assert 'semroute_answers_total{finish="tool_calls",pool="small"} 1.0' in page
    assert 'semroute_answers_total{finish="unknown",pool="small"} 1.0' in page
    assert 'semroute_answers_unread_total{pool="small",reason="cut"} 1.0' in page
    assert 'semroute_time_to_first_token_seconds_sum{pool="small"} 1.0' in page
    assert 'semroute_time_per_output_token_seconds_sum{pool="small"} 0.05' in page


@pytest.mark.parametrize(
    ("finish", "label"),
    {
        "end_turn": "stop",
        "max_tokens": "length",
        "incomplete": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
        "failed": "error",
        "a reason of tomorrow": "other",
    }.items(),
)
def test_finish_reasons_of_every_api_share_a_few_labels(finish: str, label: str) -> None:
    sink = PrometheusSink()
    sink.handle(answer(finish=finish))
    assert f'semroute_answers_total{{finish="{label}",pool="small"}} 1.0' in sink.exposition().decode()


def test_an_answer_that_is_no_stream_has_no_times() -> None:
    sink = PrometheusSink()
    sink.handle(answer(first_token_seconds=None, tokens_per_second=None))
    assert "token_seconds_count{" not in sink.exposition().decode()


def test_an_answer_is_a_span_with_the_names_of_the_conventions() -> None:
    exporter = InMemorySpanExporter()
    sink = OtelSink(exporter)
    sink.handle(answer())
    sink.close()
    [span] = exporter.get_finished_spans()
    assert (span.name, span.start_time, span.end_time) == ("chat org/small", 1_000, 9_000)
    assert span.parent is not None
    assert dict(span.attributes or {}) == {
        "http.request.header.x-request-id": "id-1",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "org/small",
        "gen_ai.original.model": "auto",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 100,
        "gen_ai.usage.reasoning.output_tokens": 3,
        "semroute.pool": "small",
        "semroute.decision.rule": "r",
        "semroute.answer.dollars": 0.25,
        "semroute.answer.baseline_dollars": 1.0,
        "semroute.answer.first_token_seconds": 0.5,
        "semroute.answer.tokens_per_second": 40.0,
    }


def test_an_answer_is_logged_with_what_it_used_and_cost() -> None:
    with capture_logs() as logs:
        LogSink(Telemetry(log_format="json")).handle(answer())
        LogSink(Telemetry(log_format="json", log_decisions=False)).handle(answer())
    [entry] = logs
    assert (entry["event"], entry["request_id"], entry["tenant"]) == ("route.answered", "id-1", "acme")
    assert "parents" not in entry, "a client may write anything there"
    assert (entry["usage"]["input"], entry["dollars"], entry["tokens_per_second"]) == (120, 0.25, 40.0)

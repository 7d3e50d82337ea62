"""The judge strategy: when the judge is asked, and what is decided with and without its answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from builders import MANIFEST, FakeEncoder, build_policies, classifier, config, raw, signals
from openai_server import Act, OpenAIServer, labeled

from semroute_extproc.config import source as config_source
from semroute_extproc.config.models import Config
from semroute_extproc.errors import ConfigError, EncoderUnavailable
from semroute_extproc.events import Decided, Event, Shadowed
from semroute_extproc.outcome import Cause, Kind, Outcome
from semroute_extproc.pipeline.pipeline import Pipeline
from semroute_extproc.policy.context import Agreement, Candidates, Choice, Judgment, RoutingContext, Shadow
from semroute_extproc.request.view import Api, Decide, RequestHead, RequestView, Turn
from semroute_extproc.serve import build
from semroute_extproc.state.live import LiveScores
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.idea import Site
from semroute_extproc.strategies.judge import Judge, JudgeSettings
from semroute_extproc.strategies.judge_client import JudgeClient
from semroute_extproc.telemetry.prom import PrometheusSink

SETTINGS: dict[str, Any] = {
    "kind": "judge",
    "weak": "small",
    "strong": "large",
    "url": "http://127.0.0.1:1/v1",
    "model": "j",
    "threshold": 0.5,
}


def calibration(quantiles: list[float], **changes: Any) -> Calibration:
    """Scores of a judge at equal steps from 0 to 100 % of the traffic."""
    spread = np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, len(quantiles)), quantiles)
    return Calibration(
        score="judge",
        bundle="test",
        revision=MANIFEST.revision,
        artifact=JudgeSettings.model_validate(SETTINGS).digest,
        rows=100,
        quantiles=tuple(spread.tolist()),
        **changes,
    )


def strategy(known: Calibration | None = None, **changes: Any) -> Judge:
    settings = {**SETTINGS, **changes}
    settings = {key: value for key, value in settings.items() if value is not None}
    if known is not None:
        settings["calibration"] = "c.json"
    site = Site("s", config().pools, MANIFEST, {"calibration": known}, [])
    return JudgeSettings.model_validate(settings).compile(site)


def facts(judgment: Judgment | None = None, difficulty: float = 0.5, **changes: Any) -> RoutingContext:
    return RoutingContext(
        head=RequestHead("POST", "/v1/chat/completions", {}),
        view=RequestView(api=Api.CHAT_COMPLETIONS, model="auto", turns=(Turn("user", "hi"),)),
        language="en",
        prompt_tokens=10,
        signals=signals(difficulty=difficulty, **changes.pop("signals", {})),
        judgments={} if judgment is None else {"s": judgment},
        **changes,
    )


def chosen(subject: Judge, facts_: RoutingContext) -> Choice:
    return subject.choose(facts_, Candidates(config().pools))


def test_the_strong_pool_answers_from_the_threshold_on() -> None:
    subject = strategy()
    assert chosen(subject, facts(Judgment(0.5, "ok"), difficulty=0.0)).pool == "large"
    assert chosen(subject, facts(Judgment(0.49, "ok"), difficulty=1.0)).pool == "small"


def test_a_share_becomes_a_threshold_by_the_judges_own_scores() -> None:
    subject = strategy(calibration([0.0, 0.1, 0.2, 0.6, 1.0]), threshold=None, strong_share=0.25)
    assert chosen(subject, facts(Judgment(0.61, "ok"))).pool == "large"
    assert chosen(subject, facts(Judgment(0.59, "ok"))).pool == "small"


def test_without_a_score_the_same_share_is_kept_by_the_difficulty() -> None:
    """The bundle of these tests has a uniform difficulty: a share of 1/4 is a threshold of 0.75."""
    subject = strategy(calibration([0.0, 0.1, 0.2, 0.6, 1.0]), threshold=0.6)
    failed = Judgment(None, "timeout")
    assert chosen(subject, facts(failed, difficulty=0.76)).pool == "large"
    assert chosen(subject, facts(failed, difficulty=0.74)).pool == "small"


def test_only_the_judges_own_scores_are_followed() -> None:
    """The window of the judge's scores must not get a difficulty, which has another scale."""
    subject = strategy(calibration([0.0, 0.1, 0.2, 0.6, 1.0]), threshold=None, strong_share=0.25)
    assert subject.follows is not None
    traffic = LiveScores(*subject.follows)
    judged = dataclasses.replace(facts(Judgment(0.61, "ok")), traffic=traffic)
    assert chosen(subject, judged).sample == (0.61, 0.25, True)
    failed = dataclasses.replace(facts(Judgment(None, "timeout"), difficulty=0.76), traffic=traffic)
    assert chosen(subject, failed).sample is None
    assert strategy(threshold=0.5).follows is None


def test_a_quality_drop_becomes_a_share() -> None:
    """Above a share of 1/4 nothing is won any more."""
    quality = tuple(min(0.5 + n / 50, 1.0) for n in range(101))
    known = calibration([0.0, 0.1, 0.2, 0.6, 1.0], quality=quality)
    subject = strategy(known, threshold=None, max_quality_drop=0.0)
    assert chosen(subject, facts(Judgment(0.61, "ok"))).pool == "large"
    assert chosen(subject, facts(Judgment(0.59, "ok"))).pool == "small"


def test_without_a_score_and_without_a_calibration_the_threshold_is_taken_as_it_is() -> None:
    failed = Judgment(None, "breaker")
    assert chosen(strategy(threshold=0.9), facts(failed, difficulty=0.91)).pool == "large"
    assert chosen(strategy(threshold=0.9), facts(failed, difficulty=0.89)).pool == "small"


def test_text_the_bundle_does_not_know_is_the_judges_to_decide_if_it_answers() -> None:
    unknown = {"unknown": True}
    assert chosen(strategy(), facts(Judgment(0.1, "ok"), signals=unknown)).pool == "small"
    assert chosen(strategy(), facts(Judgment(None, "http"), 0.1, signals=unknown)).pool == "large"


def test_a_quality_moves_the_judges_threshold_and_its_ends_need_no_judge() -> None:
    subject = strategy()
    assert subject.wants_judgment(facts(quality=0.5))
    assert not subject.wants_judgment(facts(quality=1.0))
    assert not subject.wants_judgment(facts(quality=0.0))
    assert not subject.wants_judgment(facts(Judgment(0.4, "ok")))
    assert chosen(subject, facts(Judgment(0.3, "ok"), quality=0.8)).pool == "large"
    assert chosen(subject, facts(quality=1.0, difficulty=0.0)).pool == "large"


# Through the pipeline.


def settings(url: str, **changes: Any) -> Config:
    return config(strategies={"s": {**SETTINGS, "url": url, **changes}}, server={"deadline_ms": 2_000})


async def outcome(
    settings_: Config, encoder: FakeEncoder | None = None, *, judges: int = 1, quality: str = ""
) -> list[Outcome]:
    policies, problems = build_policies(settings_)
    assert problems == []
    [found] = [s for s in settings_.strategies.values() if isinstance(s, JudgeSettings)]
    judge = JudgeClient("s", found)
    subject = Pipeline(settings_, policies, classifier(encoder or FakeEncoder()), pytest.fail, {"s": judge})
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "prove it"}]}).encode()
    head = RequestHead("POST", "/v1/chat/completions", {"x-semroute-quality": quality} if quality else {})
    try:
        return [await subject.decide(Decide(head, Api.CHAT_COMPLETIONS, body)) for _ in range(judges)]
    finally:
        await judge.close()


@pytest.mark.parametrize(("p", "pool"), [(0.9, "large"), (0.1, "small")])
async def test_the_judge_decides_and_the_second_time_it_is_remembered(p: float, pool: str) -> None:
    async with OpenAIServer(lambda _: labeled({"1": p, "5": 1 - p})) as server:
        first, second = await outcome(settings(server.url, timeout_ms=1_000), judges=2)
    assert (first.kind, first.pool, second.pool) == (Kind.ROUTED, pool, pool)
    assert first.decision is not None
    assert second.decision is not None
    assert (first.decision.judge, second.decision.judge) == ("ok", "cache")
    assert first.decision.choice.score == pytest.approx(p)
    assert [s.name for s in first.stages] == [
        "parse",
        "policy",
        "encode",
        "policy",
        "judge",
        "policy",
        "edit",
    ]
    assert len(server.requests) == 1
    assert "prove it" in server.requests[0]["messages"][1]["content"]


async def test_a_dead_judge_does_not_turn_a_decision_into_a_fallback() -> None:
    [found] = await outcome(settings("http://127.0.0.1:1/v1"), FakeEncoder(lambda _: raw(-5.0)))
    assert (found.kind, found.pool) == (Kind.ROUTED, "small")
    assert found.decision is not None
    assert found.decision.judge == "connection"
    assert found.reason.startswith("difficulty")


async def test_a_slow_judge_is_left_at_its_own_deadline() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        server.script.append(Act(delay=20.0))
        began = asyncio.get_running_loop().time()
        [found] = await outcome(settings(server.url, timeout_ms=50), FakeEncoder(lambda _: raw(5.0)))
        assert asyncio.get_running_loop().time() - began < 1.5
    assert (found.kind, found.pool) == (Kind.ROUTED, "large")


async def test_without_signals_the_judge_is_not_asked() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        [found] = await outcome(settings(server.url), FakeEncoder(EncoderUnavailable(Cause.OVERLOADED)))
        assert server.requests == []
    assert (found.kind, found.cause, found.pool) == (Kind.FALLBACK, "overloaded", "large")


async def test_what_the_client_promised_itself_is_decided_without_the_judge() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        [found] = await outcome(settings(server.url), quality="0")
        assert server.requests == []
    assert found.pool == "small"


async def test_every_result_is_counted_by_strategy() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        found = await outcome(settings(server.url, timeout_ms=1_000), judges=3)
    sink = PrometheusSink()
    for each in found:
        sink.handle(Decided(each, "r", "/", (), 0, 0, 0, False))
    page = sink.exposition().decode()
    assert 'semroute_judge_total{result="ok",strategy="s"} 1.0' in page
    assert 'semroute_judge_total{result="cache",strategy="s"} 2.0' in page


async def shadowed(url: str, share: float) -> tuple[Outcome, list[Shadow]]:
    """A live threshold with a judge in its shadow; what the shadow says later."""
    pair = {"kind": "threshold", "weak": "small", "strong": "large", "threshold": 0.5}
    settings_ = config(
        strategies={"s": pair, "j": {**SETTINGS, "url": url, "timeout_ms": 1_000}},
        policies={
            "main": {"otherwise": {"strategy": "s"}, "shadow": ["judged"], "shadow_share": share},
            "judged": {"otherwise": {"strategy": "j"}},
        },
        server={"deadline_ms": 2_000},
    )
    policies, _ = build_policies(settings_)
    told: list[Shadow] = []

    def emit(event: Event) -> None:
        assert isinstance(event, Shadowed)
        told.append(event.shadow)

    encoder = classifier(FakeEncoder(lambda _: raw(-5.0)))
    each = settings_.strategies.items()
    asked = {name: JudgeClient(name, one) for name, one in each if isinstance(one, JudgeSettings)}
    subject = Pipeline(settings_, policies, encoder, emit, asked)
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "prove it"}]}).encode()
    head = RequestHead("POST", "/v1/chat/completions", {})
    found = await subject.decide(Decide(head, Api.CHAT_COMPLETIONS, body))
    async with asyncio.timeout(5):
        while share and not told:
            await asyncio.sleep(0.01)
    for judge in asked.values():
        await judge.close()
    return found, told


async def test_a_judge_in_the_shadow_is_asked_once_the_live_request_has_gone() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        server.delay = 0.1
        live, [later] = await shadowed(server.url, 1.0)
        assert len(server.requests) == 1
    assert (live.pool, live.shadows) == ("small", ())
    assert (later.shadow, later.pool) == ("judged", "large")
    assert "judge" not in live.milliseconds()


async def test_a_judge_in_the_shadow_is_undecided_where_it_is_not_asked() -> None:
    async with OpenAIServer(lambda _: labeled({"1": 1.0})) as server:
        live, told = await shadowed(server.url, 0.0)
        assert server.requests == []
    assert (live.pool, told) == ("small", [])
    assert [shadow.agreement for shadow in live.shadows] == [Agreement.UNDECIDED]


# The configuration.

YAML = """\
pools:
  small: {cluster: s, model: m-s}
  large: {cluster: l, model: m-l}
default_pool: large
models:
  auto: {policy: main}
policies:
  main: {otherwise: {strategy: s}}
strategies:
  s: {kind: judge, weak: small, strong: large, url: "http://judge:8000/v1", model: j, threshold: 0.5}
"""


def problems(tmp_path: Any, text: str) -> list[str]:
    file = tmp_path / "semroute.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        build.make_judges(config_source.load(file, {}))
    return caught.value.problems


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold: 0.5", "strong_share: 0.3", "strong_share needs a calibration"),
        ("threshold: 0.5", "", "give exactly one of"),
        ("threshold: 0.5", "threshold: 0.5, timeout_ms: 100", "must be below server.deadline_ms (100)"),
        (
            "threshold: 0.5",
            "threshold: 0.5, reasoning: qwen",
            "no reasoning family 'qwen' (did you mean 'qwen3'?)",
        ),
        ("threshold: 0.5", "threshold: 0.5, api_key_env: NO_SUCH_KEY", "the environment has no NO_SUCH_KEY"),
        ("model: j", "model: auto", "is a routed name"),
        ("http://judge:8000/v1", "judge:8000", "pattern"),
        ("weak: small", "weak: smal", "there is no pool 'smal'"),
    ],
)
def test_what_is_wrong_is_said_at_its_place(tmp_path: Any, old: str, new: str, message: str) -> None:
    [problem] = problems(tmp_path, YAML.replace(old, new))
    assert "semroute.yaml:10:" in problem
    assert message in problem


async def test_a_judge_that_did_not_change_is_kept_over_a_reload(tmp_path: Any) -> None:
    file = tmp_path / "semroute.yaml"
    file.write_text(YAML)
    live = build.make_judges(config_source.load(file, {}))
    file.write_text(YAML.replace("cluster: l", "cluster: x"))
    assert build.make_judges(config_source.load(file, {}), live)["s"] is live["s"]
    file.write_text(YAML.replace("threshold: 0.5", "threshold: 0.6"))
    other = build.make_judges(config_source.load(file, {}), live)
    assert other["s"] is not live["s"]
    for judge in (live["s"], other["s"]):
        await judge.close()

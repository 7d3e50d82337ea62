"""The benchmark's own arithmetic: what it sends, what it judges, and when the check in CI fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from semroute_extproc import bundle
from semroute_extproc._pb import external_processor_pb2 as pb
from semroute_extproc.bench import check, load, machine, overload, report
from semroute_extproc.bench.cli import bench
from semroute_extproc.bench.direct import Samples
from semroute_extproc.encoder.tokens import Framer

RATIOS = {
    "server cpu / bare": 1.1,
    "busy server cpu / bare": 1.08,
    "pipeline cpu / bare": 1.05,
    "server rate / bare": 0.9,
    "named rate / floor": 0.85,
    "floor cpu / named": 0.8,
    "int8 / fp32": 0.4,
    "two workers / one": 1.05,
}


def run(**changes: Any) -> dict[str, Any]:
    """A run in which every aim holds."""
    times = {"p50": 10.0, "p90": 20.0, "p99": 90.0, "p999": 100.0}
    row = {
        "share of knee": 3.0,
        "sent": 100,
        "answered": 1.0,
        "decided": 0.4,
        "fallen back": 0.6,
        "ms": times,
    }
    medians = {"bare session": 10.0, "Envoy alone": 2.0, "named model": 2.8, "routed model": 12.7}
    figures = {
        "machine": {"cores": 2},
        "ratios": RATIOS,
        "open loop": {
            "deadline ms": 100.0, "knee a second": 100.0, "rates": [row],
            "after overload": {**row, "decided": 1.0},
        },
        "gateway": {"ms": {path: {"p50": value} for path, value in medians.items()}},
        "start seconds": 1.5,
        "growth": {"requests": 1000, "warm MiB": 200.0, "after MiB": 200.2},
    }  # fmt: skip
    return {**figures, **changes}


def test_a_request_is_what_envoy_sends() -> None:
    sent = load.exchange(b'{"model": "auto"}')
    headers = pb.ProcessingRequest.FromString(sent.headers).request_headers.headers.headers
    assert (":method", b"POST") in [(header.key, header.raw_value) for header in headers]
    body = pb.ProcessingRequest.FromString(sent.body).request_body
    assert (body.body, body.end_of_stream) == (b'{"model": "auto"}', True)


@pytest.mark.parametrize("tokens", [16, 64, 512])
def test_a_prompt_has_the_tokens_it_is_to_have(tokens: int) -> None:
    path = bundle.default_bundle()
    framer = Framer(path / "tokenizer.json", bundle.read_manifest(path).encoder)
    assert framer.frame(load.prompt_of(framer, tokens)).tokens + 2 == pytest.approx(tokens, abs=1)


def test_the_bodies_are_as_large_as_they_say() -> None:
    sizes = {name: len(body) for name, body in load.bodies("auto").items()}
    assert list(sizes.values()) == pytest.approx([2_000, 42_000, 1_400_000, 10_000_000], rel=0.15)


def test_cpu_time_of_a_process_is_its_own_and_fine_grained() -> None:
    before, mine = machine.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - mine < 0.02:
        pass
    assert machine.cpu_seconds(os.getpid()) - before == pytest.approx(0.02, abs=0.01)


def test_a_ratio_is_taken_round_by_round() -> None:
    """A slow moment in one round falls on both, and moves the ratio of medians but not this."""
    samples = Samples()
    for ours, base in ((1.1, 1.0), (5.5, 5.0), (1.1, 1.0)):
        samples.add("ours", ours)
        samples.add("base", base)
    assert samples.ratio("ours", "base") == pytest.approx(1.1)


def test_arrivals_are_answered_decided_or_fallen_back() -> None:
    answers = [load.Answer(10.0, "routed"), load.Answer(1.0, "fallback"), load.Answer(0.0, "")]
    row = overload.row(3.0, 100.0, [*answers, load.Answer(20.0, "routed")])
    assert (row["sent"], row["answered"], row["decided"], row["fallen back"]) == (4, 0.75, 0.5, 0.25)


def test_all_aims_hold_in_a_good_run() -> None:
    found = report.aims(run())
    assert [aim.what for aim in found if aim.holds is False] == []
    assert sum(aim.holds is None for aim in found) == 3, "only what needs another machine is not measured"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ratios": {**RATIOS, "server cpu / bare": 1.2}}, "server driven directly"),
        ({"ratios": {**RATIOS, "named rate / floor": 0.7}}, "do-nothing"),
        ({"start seconds": 2.5}, "start to SERVING"),
        ({"growth": {"requests": 9, "warm MiB": 200.0, "after MiB": 260.0}}, "growth"),
    ],
)
def test_an_aim_that_is_missed_says_so(changes: dict[str, Any], what: str) -> None:
    missed = [aim for aim in report.aims(run(**changes)) if aim.holds is False]
    assert [what in aim.what for aim in missed] == [True]


def test_what_could_not_be_measured_neither_holds_nor_fails() -> None:
    ratios = {name: value for name, value in RATIOS.items() if name != "int8 / fp32"}
    found = report.aims(run(gateway=None, ratios=ratios))
    unmeasured = [aim for aim in found if aim.holds is None]
    assert len(unmeasured) == 5
    assert all(aim.note for aim in unmeasured)


def test_the_check_lets_noise_pass() -> None:
    worse = {**RATIOS, "server cpu / bare": 1.25, "floor cpu / named": 0.65}
    assert list(check.losses(RATIOS, worse)) == []


@pytest.mark.parametrize(
    "change", [{"server cpu / bare": 1.5}, {"pipeline cpu / bare": 1.3}, {"floor cpu / named": 0.4}]
)
def test_the_check_fails_on_a_clear_loss(change: dict[str, float]) -> None:
    [line] = check.losses(RATIOS, {**RATIOS, **change})
    assert "allowed" in line


def test_the_check_never_fails_on_a_gain() -> None:
    assert list(check.losses(RATIOS, dict.fromkeys(RATIOS, 1.0))) == []


@pytest.mark.parametrize(("dearer", "status"), [(0.0, 0), (1.0, 1)])
def test_the_command_ends_with_the_checks_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dearer: float, status: int
) -> None:
    recorded = tmp_path / "bench.json"
    recorded.write_text(json.dumps({"ratios": RATIOS}))
    now = {**RATIOS, "server cpu / bare": RATIOS["server cpu / bare"] + dearer}
    replaced: dict[str, Callable[..., Any]] = {"_run": lambda _: (Samples(), {}), "ratios": lambda *_: now}
    for name, function in replaced.items():
        monkeypatch.setattr(f"semroute_extproc.bench.cli.{name}", function)
    monkeypatch.setattr("semroute_extproc.bench.direct.rounds", lambda *_, **__: None)
    done = CliRunner().invoke(bench, ["--check", str(recorded)])
    assert done.exit_code == status, done.output

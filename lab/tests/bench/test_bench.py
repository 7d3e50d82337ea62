"""The benchmark's own arithmetic: what it sends, what it judges, and when the check in CI fails."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from semroute_bench import check, growth, load, machine, overload, report
from semroute_bench import run as parts
from semroute_bench.cli import bench
from semroute_bench.direct import Samples
from semroute_bench.run import Size, medians, spreads

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.preprocess import Framer
from semroute_extproc.envoy._pb import external_processor_pb2 as pb

RATIOS = {
    "server cpu / bare": 1.1,
    "busy server cpu / bare": 1.08,
    "server cpu / passes": 1.05,
    "busy server cpu / passes": 1.04,
    "server rate / passes": 0.95,
    "pipeline cpu / bare": 1.05,
    "server rate / bare": 0.9,
    "own cpu / floor": 1.2,
    "named rate / floor": 0.85,
    "named cpu / floor": 1.25,
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
    medians = {
        "bare session": 10.0,
        "Envoy alone": 2.0,
        "do-nothing processor": 2.5,
        "do-nothing processor with the pass": 12.6,
        "named model": 2.8,
        "routed model": 12.7,
    }
    figures = {
        "machine": {"cores": 2},
        "ratios": RATIOS,
        "open loop": {
            "deadline ms": 100.0, "knee a second": 100.0, "rates": [row],
            "after overload": {**row, "decided": 1.0},
        },
        "gateway": {"ms": {path: {"p50": value} for path, value in medians.items()}},
        "start seconds": 1.5,
        "growth": {"requests": 1000, "workers": 2, "warm MiB": [200.0, 190.0], "after MiB": [200.2, 190.1]},
        "workers": {"left out": "needs 16 cores, here are 2"},
        "gpu": {"left out": "no CUDA device"},
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
    assert samples.ratios("ours", "base") == pytest.approx([1.1, 1.1, 1.1])


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
        (
            {
                "growth": {
                    "requests": 9,
                    "workers": 2,
                    "warm MiB": [200.0, 190.0],
                    "after MiB": [200.0, 196.0],
                }
            },
            "growth",
        ),
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


def gpu_row(workers: int, at_once: int, rate: float, p50: float, p99: float, decided: float = 1.0) -> Any:
    ms = {"p50": p50, "p90": p50, "p99": p99, "p999": p99}
    return {"workers": workers, "at once": at_once, "a second": rate, "decided": decided, "ms": ms}


def test_a_gpus_rate_is_the_best_with_a_short_tail_and_everything_decided() -> None:
    rows = [
        gpu_row(1, 1, 400.0, 2.5, 3.0),
        gpu_row(1, 64, 9_000.0, 5.0, 9.0),
        gpu_row(1, 512, 14_000.0, 20.0, 40.0),
        gpu_row(2, 64, 12_000.0, 5.0, 9.5),
        gpu_row(2, 128, 13_000.0, 5.0, 9.5, decided=0.5),
    ]
    found = {aim.what: aim for aim in report.aims(run(gpu={"device": "NVIDIA H200", "rows": rows}))}
    rate = found["GPU: decisions a second at p99 <= 10 ms"]
    assert (rate.value, rate.holds, rate.note) == (12_000.0, True, "NVIDIA H200, 2 workers, 64 at once")
    assert found["GPU: single decision p50"].value == 2.5


def test_a_gpu_whose_tail_is_always_too_long_has_no_rate_that_counts() -> None:
    gpu = {"device": "slow", "rows": [gpu_row(1, 1, 10.0, 50.0, 90.0)]}
    aims = [aim for aim in report.aims(run(gpu=gpu)) if aim.what.startswith("GPU")]
    assert [(aim.value, aim.holds) for aim in aims] == [(0.0, False), (50.0, False)]


def test_many_workers_are_compared_with_one() -> None:
    rows = [gpu_row(1, 2, 50.0, 20.0, 30.0), gpu_row(8, 16, 350.0, 20.0, 30.0)]
    [aim] = [aim for aim in report.aims(run(workers={"rows": rows})) if "8 workers" in aim.what]
    assert (aim.value, aim.holds) == (7.0, True)


def rounds(sigma: float, **medians: float) -> dict[str, list[float]]:
    """Five rounds of each watched ratio, `sigma` apart as a share of it."""
    shape = (-1.26, -0.63, 0.0, 0.63, 1.26)  # of standard deviation 1
    values = {name: medians.get(name, RATIOS[name]) for name in check.WATCHED}
    return {name: [value * (1 + sigma * step) for step in shape] for name, value in values.items()}


def recorded(sigma: float) -> dict[str, Any]:
    now = rounds(sigma)
    return {"ratios": RATIOS, "rounds": 7, "spreads": spreads(now), "machine": HERE}


@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("name", check.WATCHED)
def test_the_check_lets_noise_pass_as_large_as_the_rounds_show_it(sigma: float, name: str) -> None:
    """A median moves by up to two standard errors of its difference, and by a little for no reason."""
    error = check.MEDIAN_ERROR * sigma * sqrt(1 / 7 + 1 / 5)
    worse = RATIOS[name] * (1.04 + 2 * error)
    assert list(check.losses(recorded(sigma), rounds(sigma, **{name: worse}), HERE)) == []


@pytest.mark.parametrize(("sigma", "loss"), [(0.01, 0.1), (0.03, 0.2), (0.1, 0.5), (0.2, 1.0)])
@pytest.mark.parametrize("name", check.WATCHED)
def test_the_check_fails_on_a_clear_loss_and_the_quieter_the_smaller(
    sigma: float, loss: float, name: str
) -> None:
    now = rounds(sigma, **{name: RATIOS[name] * (1 + loss)})
    [line] = check.losses(recorded(sigma), now, HERE)
    assert line.startswith(name)
    assert "allowed" in line


def test_a_quiet_record_does_not_make_a_noisy_run_fail() -> None:
    now = rounds(0.3, **{"named cpu / floor": RATIOS["named cpu / floor"] * 1.3})
    assert list(check.losses(recorded(0.01), now, HERE)) == []


def test_the_check_seldom_fails_on_the_same_code() -> None:
    """A thousand checks with rounds drawn from one normal distribution, as wide as on a busy machine."""
    draw, failed = random.Random(1), 0
    for _ in range(1_000):
        drawn = {
            count: {name: [draw.gauss(1.3, 0.15) for _ in range(count)] for name in check.WATCHED}
            for count in (7, 5)
        }
        run_of_seven = {
            "ratios": medians(drawn[7]),
            "spreads": spreads(drawn[7]),
            "rounds": 7,
            "machine": HERE,
        }
        failed += bool(list(check.losses(run_of_seven, drawn[5], HERE)))
    assert failed < 20


def test_the_check_never_fails_on_a_gain() -> None:
    now = rounds(0.02, **dict.fromkeys(check.WATCHED, 1.0))
    assert list(check.losses(recorded(0.02), now, HERE)) == []


def test_another_machine_is_held_to_what_does_not_depend_on_the_speed_of_a_pass() -> None:
    """A pass that takes a third of the time makes the same overhead three times as much of it."""
    now = rounds(0.02, **{"server cpu / bare": 2.5})
    other = {**HERE, "instructions": ["avx512", "vnni"]}
    assert list(check.losses(recorded(0.02), now, other)) == []
    [line] = check.losses(recorded(0.02), rounds(0.02, **{"own cpu / floor": 2.0}), other)
    assert line.startswith("own cpu / floor")


def test_a_record_without_spreads_is_refused() -> None:
    with pytest.raises(ValueError, match="no spreads"):
        check.limits({"ratios": RATIOS, "rounds": 7}, rounds(0.1), HERE)


@pytest.mark.parametrize(("dearer", "status"), [(0.0, 0), (1.0, 1)])
def test_the_command_ends_with_the_checks_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dearer: float, status: int
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(recorded(0.02)))
    now = rounds(0.02, **{"own cpu / floor": RATIOS["own cpu / floor"] + dearer})
    replaced: dict[str, Callable[..., Any]] = {"_run": lambda _: (Samples(), {}), "ratios": lambda *_: now}
    for name, function in replaced.items():
        monkeypatch.setattr(f"semroute_bench.cli.{name}", function)
    monkeypatch.setattr("semroute_bench.direct.rounds", lambda *_, **__: None)
    done = CliRunner().invoke(bench, ["--check", str(file)])
    assert done.exit_code == status, done.output


HERE = {"cpu": "C", "instructions": ["avx2"], "cores": 2, "load_before": 0.1}


@pytest.fixture
def measured_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recorded run of this machine, whose memory test gives what it was asked for."""

    async def growth(size: Size, *_: Any) -> dict[str, Any]:
        grown = {"requests": size.growth_requests, "workers": 1, "warm MiB": [1.0], "after MiB": [1.5]}
        return {"growth": grown}

    monkeypatch.setattr("semroute_bench.machine.describe", lambda: {**HERE, "load_before": 9.0})
    monkeypatch.setitem(parts.PARTS, "growth", growth)  # type: ignore[arg-type]
    monkeypatch.setattr("semroute_bench.report.tables", lambda _: [])
    monkeypatch.setattr("semroute_bench.plots.draw", lambda *_: [])
    before = {**run(), "schema": parts.SCHEMA, "machine": HERE, "measured": {"costs": {"seconds": 1.0}}}
    (tmp_path / "bench.json").write_text(json.dumps(before))
    return tmp_path


def test_one_part_is_measured_and_the_rest_stays_as_it_was_recorded(measured_alone: Path) -> None:
    file = measured_alone / "bench.json"
    before = json.loads(file.read_text())
    arguments = ["--only", "growth", "--requests", "1000000", "--out", str(measured_alone)]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 0, done.output
    after = json.loads(file.read_text())
    assert after["growth"]["requests"] == 1_000_000
    assert after["measured"].keys() == {"costs", "growth"}
    assert {key for key in before if after[key] != before[key]} == {"growth", "measured"}
    [aim] = [aim for aim in after["aims"] if aim["what"] == "growth after warm-up"]
    assert (aim["value"], aim["note"]) == (0.5, "over 1,000,000 requests, workers: 1")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"machine": {**HERE, "cores": 64}}, "another machine's: cores is 64"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_a_part_joins_no_run_that_it_cannot_be_compared_with(
    measured_alone: Path, change: dict[str, Any], why: str
) -> None:
    file = measured_alone / "bench.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    done = CliRunner().invoke(bench, ["--only", "growth", "--out", str(measured_alone)])
    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("where", [[], ["--out", "nowhere"]])
def test_a_part_needs_a_recorded_run(where: list[str]) -> None:
    done = CliRunner().invoke(bench, ["--only", "growth", *where])
    assert done.exit_code == 2
    assert "recorded run" in done.output


def test_the_memory_tests_requests_are_mostly_named_and_no_new_text_comes_twice() -> None:
    kinds = Counter(json.loads(body(each))["model"] for each in growth.traffic(0, 2_000))
    assert kinds == {"Qwen/Qwen3-8B": 1_800, "auto": 200}
    texts = Counter(each.body for each in growth.traffic(0, 20_000))
    assert sum(count == 1 for count in texts.values()) == 20_000 // growth.PERIOD


def body(exchange: load.Exchange) -> bytes:
    return pb.ProcessingRequest.FromString(exchange.body).request_body.body

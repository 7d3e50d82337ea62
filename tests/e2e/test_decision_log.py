"""The decision log behind a real Envoy: written, joined with outcomes, and decided again."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from click.testing import CliRunner
from gateway import CONFIG_PATH, Gateway, chat, wait_for
from semroute_demo.sidecar import Sidecar
from semroute_lab.fit.cli import calibrate
from semroute_lab.replay.cli import replay

MakeGateway = Callable[..., Gateway]
MakeSidecar = Callable[..., Sidecar]

TEXTS = (
    *("Hello", "What is the capital of Peru?", "Translate 'cat' into French.", "What time is it in Rome?"),
    *("Prove that the square root of 2 is irrational.", "Derive the Black-Scholes equation step by step."),
    *(
        "Is 1 odd?",
        "Why is a group of prime order cyclic?",
        "Name a fruit.",
        "Prove Fermat's little theorem.",
    ),
)


async def ask(gateway: Gateway, count: int) -> None:
    """Requests with ids `id-0`, `id-1`, …: every third has a tier, every fifth names a pool's model."""
    async with aiohttp.ClientSession(gateway.url) as client:

        async def one(number: int) -> None:
            headers = {"x-request-id": f"id-{number}", **({"x-tier": "free"} if number % 3 == 0 else {})}
            model = "large-model" if number % 5 == 0 else "auto"
            body = chat(f"{TEXTS[number % len(TEXTS)]} ({number})", model=model)
            async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
                await response.read()

        for start in range(0, count, 4):
            await asyncio.gather(*map(one, range(start, min(start + 4, count))))


def metric(sidecar: Sidecar, start: str) -> float:
    lines = sidecar.read_admin("/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(start))


def post(sidecar: Sidecar, body: str) -> Any:
    request = urllib.request.Request(
        f"http://{sidecar.admin}/outcomes",
        body.encode(),
        {"content-type": "application/x-ndjson"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def replayed(log: Path, config: Path, *more: str) -> dict[str, Any]:
    arguments = [
        str(log),
        "-c",
        str(config),
        "--old",
        str(CONFIG_PATH),
        "--json",
        "--examples",
        "1000",
        *more,
    ]
    result = CliRunner().invoke(replay, arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


async def test_a_log_of_real_traffic_is_decided_again_and_joined_with_outcomes(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    log, count = tmp_path / "log", 60
    sidecar = make_sidecar(TELEMETRY__DECISION_LOG=f"{{path: {log}, headers: [x-tier]}}")
    gateway = make_gateway([sidecar])
    await ask(gateway, count)
    await asyncio.to_thread(
        wait_for, lambda: metric(sidecar, "semroute_decision_log_records_total") >= count, 20, "the records"
    )
    lines = (log / "decisions-0.jsonl").read_text().splitlines()
    made = {each["request_id"]: each for each in map(json.loads, lines) if "request_id" in each}
    assert {f"id-{number}" for number in range(count)} <= made.keys()
    assert not any(text in line for line in lines for text in TEXTS if len(text) > 10)

    reports = [{"request_id": f"id-{number}", "label": ("good", "bad")[number % 2]} for number in range(20)]
    answer = await asyncio.to_thread(post, sidecar, "\n".join(map(json.dumps, reports)))
    assert answer == {"accepted": 20}
    pools = [made[each["request_id"]]["pool"] for each in reports]
    for pool in ("small", "large"):
        counted = await asyncio.to_thread(
            metric, sidecar, f'semroute_reported_total{{kind="good",pool="{pool}"'
        )
        good = [name for name, each in zip(pools, reports, strict=True) if each["label"] == "good"]
        assert counted == good.count(pool)

    await asyncio.to_thread(sidecar.stop)
    same = await asyncio.to_thread(replayed, log, CONFIG_PATH)
    assert same["flips"] == []
    assert same["agreement"]["value"] == 1.0
    policies = [each for each in made.values() if "policy" in each]
    assert same["decided_again"] == len(policies) >= 48

    changed = tmp_path / "changed.yaml"
    changed.write_text(CONFIG_PATH.read_text().replace("threshold: 0.5}", "threshold: 0.3}"))
    between = {
        each["request_id"]
        for each in policies
        if each.get("strategy") == "pair" and 0.3 <= each["score"] < 0.5 and not each.get("unknown")
    }
    flips = (await asyncio.to_thread(replayed, log, changed))["examples"]
    assert {each["request_id"] for each in flips} == between
    assert {(each["before"], each["after"]) for each in flips} <= {("small", "large")}

    result = await asyncio.to_thread(
        CliRunner().invoke, calibrate, [str(log), "--strong-share", "0.5", "--json"]
    )
    assert result.exit_code == 0, result.output
    signals = [each for each in made.values() if "difficulty" in each]
    assert json.loads(result.stdout)["rows"] == len(signals)


async def test_workers_write_files_of_their_own_and_find_the_pools_of_each_others_requests(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    log, count = tmp_path / "log", 40
    sidecar = make_sidecar(SERVER__WORKERS="2", TELEMETRY__DECISION_LOG=f"{{path: {log}, headers: [x-tier]}}")
    gateway = make_gateway([sidecar])
    await ask(gateway, count)
    await asyncio.to_thread(
        wait_for, lambda: metric(sidecar, "semroute_decision_log_records_total") >= count, 20, "the records"
    )
    files = sorted(path.name for path in log.iterdir())
    assert files == ["decisions-0.jsonl", "decisions-1.jsonl"]
    reports = [{"request_id": f"id-{number}", "score": 0.5} for number in range(count)]
    assert await asyncio.to_thread(post, sidecar, "\n".join(map(json.dumps, reports))) == {"accepted": count}
    unknown = await asyncio.to_thread(metric, sidecar, 'semroute_reported_total{kind="score",pool=""')
    known = await asyncio.to_thread(metric, sidecar, "semroute_reported_total{")
    assert (unknown, known) == (0.0, count)
    assert (await asyncio.to_thread(replayed, log, CONFIG_PATH))["agreement"]["value"] == 1.0


async def test_a_full_disk_loses_records_and_no_request(
    make_gateway: MakeGateway, make_sidecar: MakeSidecar, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.mkdir()
    (log / "decisions-0.jsonl").symlink_to("/dev/full")
    sidecar = make_sidecar(TELEMETRY__DECISION_LOG=f"{{path: {log}}}")
    gateway = make_gateway([sidecar])
    await ask(gateway, 20)
    lost = 'semroute_decision_log_lost_total{why="disk"}'
    await asyncio.to_thread(wait_for, lambda: metric(sidecar, lost) >= 20, 20, "the lost records")
    assert metric(sidecar, 'semroute_outcomes_total{cause="strategy",outcome="routed"') >= 1
    assert "decision_log.paused" in sidecar.process.log_tail(200)

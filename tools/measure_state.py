"""Measure what state that replicas share costs a request: wait and CPU, with and without the shared store.

The sidecars run at once, with limits, sessions and live scores, and take turns, so that whatever else the
machine does falls on all. The wait is the stage `controllers` of a decision: the lookup of the conversation.

    python tools/measure_state.py    writes benchmarks/results/state.json; takes a minute
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from semroute_bench import load
from semroute_bench.measuring import Samples, cpu_seconds, describe, quantiles
from semroute_bench.servers import Measured, Target

from semroute_extproc.envoy._pb import external_processor_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / name) for name in ("faults", "e2e", "helpers")]
ROUNDS, REQUESTS, AT_ONCE, WARM_UP = 12, 300, 1, 200
LIMITS = "{tenants: {'*': {dollars: 1000, window_seconds: 604800}}, strategies: {pair: {dollars: 1000}}}"


def requests(round_: int) -> list[load.Exchange]:
    """Requests of 20 tenants, in conversations of two requests."""
    found = []
    plain = load.exchange(load.chat(load.ROUTED))
    for number in range(REQUESTS):
        first = pb.ProcessingRequest.FromString(plain.headers)
        names = {"x-semroute-tenant": f"t{number % 20}", "x-semroute-session": f"{round_}-{number // 2}"}
        for key, value in names.items():
            first.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        found.append(load.Exchange(first.SerializeToString(), plain.body))
    return found


def waits(log: Path, skip: int) -> list[float]:
    """Milliseconds of the stage `controllers` in a sidecar's log."""
    lines = [line for line in log.read_text().splitlines() if '"controllers_ms"' in line]
    return [json.loads(line)["controllers_ms"] for line in lines[skip:]]


async def measure(folder: Path, store: str) -> dict[str, Any]:
    """The figures of both."""
    common = {"controllers__limits": LIMITS, "telemetry__log_format": "json", "server__deadline_ms": "5000"}
    shared = {"controllers__store": f"{{url: '{store}', key: 0123456789abcdef, replicas: 4}}"}
    sessions = {"controllers__session": "{}"}
    variants = {
        "off": sessions,
        "limits and live scores": {**shared, "controllers__session": "null"},
        "conversations as well": {**shared, **sessions},
    }
    samples, answers = Samples(), {name: list[float]() for name in variants}
    async with AsyncExitStack() as exits:
        servers = {
            name: await asyncio.to_thread(Measured, folder / name, **common, **more)
            for name, more in variants.items()
        }
        targets = {name: await Target.of(server, exits) for name, server in servers.items()}
        for target in targets.values():
            await target.send(load.exchange(load.chat(load.ROUTED)), WARM_UP, AT_ONCE)
        for round_ in range(ROUNDS):
            batch = requests(round_)
            for name, target in targets.items():
                before = cpu_seconds(*target.pids)
                found = await target.clients[0].closed(batch, AT_ONCE)
                samples[name].append((cpu_seconds(*target.pids) - before) / len(found) * 1e3)
                answers[name] += [answer.ms for answer in found]
        idle = {name: cpu_seconds(*target.pids) for name, target in targets.items()}
        await asyncio.sleep(5.0)
        idle = {name: (cpu_seconds(*target.pids) - idle[name]) / 5.0 for name, target in targets.items()}
        page = servers["conversations as well"].read_admin("/metrics")[1].splitlines()
    failures = ("semroute_shared_store_errors_total", "semroute_session_remote_errors_total")
    wrong = [line for line in page if line.startswith(failures)]
    rows = {
        name: {
            "wait_ms": quantiles(waits(folder / name / "sidecar.log", WARM_UP)),
            "answer_ms": quantiles(answers[name]),
            "cpu_ms": statistics.median(samples[name]),
            "idle_percent": 100 * idle[name],
        }
        for name in answers
    }
    return {"requests": ROUNDS * REQUESTS, "at_once": AT_ONCE, "rows": rows, "errors": wrong}


def main() -> None:
    """See above."""
    from world import start_valkey

    with tempfile.TemporaryDirectory(prefix="semroute-state-") as name:
        folder = Path(name)
        machine = describe()
        valkey, url = start_valkey(folder)
        try:
            found = asyncio.run(measure(folder, url))
        finally:
            valkey.stop()
    result = {"machine": machine, **found}
    (ROOT / "benchmarks" / "results" / "state.json").write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

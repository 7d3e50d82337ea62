"""Measure what a decision of a log costs each command, in CPU time and memory, on one core.

    python tools/measure_logs.py [DECISIONS]    writes benchmarks/results/logs.json; takes some minutes

The log is Parquet and several times larger than what a command may hold. The same commands on a log of a few
decisions are subtracted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from many_files import COMMANDS, SHIPPED, make_home  # noqa: E402

from semroute_extproc.settings.process import DecisionLog  # noqa: E402
from semroute_extproc.telemetry.decision_log import log_files  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "logs.json"
MEMORY_MIB = 16
OPERATIONS = {
    "replay": "replay",
    "calibrate, from signals": "share",
    "calibrate, from outcomes": "drop",
    "fit clusters": "clusters",
    "fit similarity": "similarity",
    "fit factorization": "factorization",
    "profile fit": "profile",
}


def write(path: Path, lines: list[dict[str, Any]], decisions: int) -> int:
    """Repeat the records with new ids, prompts and embeddings; returns the bytes as JSON Lines."""
    files = log_files(DecisionLog(path=path, format="parquet", rotate_bytes=32 * 1024**2, keep=10_000), 0)
    rng, size, made, batch = np.random.default_rng(0), 0, 0, list[bytes]()
    prompts: dict[str, str] = {}
    while made < decisions:
        copy = made
        for record in lines:
            name = f"{record['request_id']}-{copy}"
            record = record | {"request_id": name}
            if record["record"] == "decision":
                made += 1
                # Each prompt is asked four times, of one model or the other.
                record["prompt"] = f"{record['prompt']} {copy}"
                seed = prompts.setdefault(record["prompt"], rng.bytes(768).hex())
                record["embedding"] = _base64(seed)
            batch.append(json.dumps(record).encode() + b"\n")
            size += len(batch[-1])
            if len(batch) == 256:
                files.append(b"".join(batch))
                batch = []
        prompts = {}
    files.append(b"".join(batch) or b"\n")
    files.close()
    return size


def _base64(seed: str) -> str:
    import base64

    x = np.frombuffer(bytes.fromhex(seed), np.uint8)[:384].astype(np.float32) - 127.5
    return base64.b64encode((x / np.linalg.norm(x)).astype("<f2").tobytes()).decode()


def run(home: Path, log: str, name: str) -> tuple[float, float]:
    """CPU seconds and MiB of a command on one core."""
    paths: dict[Any, Path] = {each: home / each for each in ("new.yaml", "k.npz")}
    paths |= {"log": home / log, "OUT": home / "out.npz"}
    arguments = [str(paths.get(each, each)) for each in COMMANDS[name]]
    command = [sys.executable, "-m", "semroute_extproc", *arguments, "--memory", str(MEMORY_MIB)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure every operation and write the results."""
    decisions = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        home = make_home(Path(folder))
        lines = [json.loads(line) for line in (home / "made" / "decisions-0.jsonl").read_text().splitlines()]
        for number, record in enumerate(list(lines)):
            ids = {"request_id": record["request_id"], "time": record["time"]}
            lines.append({"record": "usage", **ids, "output_tokens": 100 + number % 7, "duration_ms": 10.0})
            lines.append({"record": "outcome", **ids, "outcome": float(number % 3 > 0), "source": "user"})
        few, size = len(lines) // 3, write(home / "many", lines, decisions)
        write(home / "few", lines, few)
        packed = sum(each.stat().st_size for each in (home / "many").rglob("*.parquet"))
        rows = []
        for operation, name in OPERATIONS.items():
            (small, base), (large, peak) = run(home, "few", name), run(home, "many", name)
            micros = (large - small) / (decisions - few) * 1e6
            rows.append(
                {"operation": operation, "us": round(micros, 1), "mib": round(peak), "few_mib": round(base)}
            )
            sys.stderr.write(f"{rows[-1]}\n")
    found = {
        "decisions": decisions,
        "bytes": size,
        "parquet_bytes": packed,
        "memory_mib": MEMORY_MIB,
        "dimensions": int(SHIPPED.centroids.shape[1]),
        "operations": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

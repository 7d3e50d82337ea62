"""How much a run measures, on which machine, and the samples of its rounds."""

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semroute_extproc.io.cores import usable_cores

Figures = dict[str, Any]
"""A part of the run, as it is written to the file."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    rounds: int = 7
    passes: int = 60  # encoder passes of each kind per round
    streams: int = 1_500  # streams without an encoder pass per round
    passes_a_length: int = 30
    requests_a_body: int = 10
    seconds_a_rate: float = 20.0
    gateway_requests: int = 500
    growth_requests: int = 100_000
    gpu_requests: int = 10_000


QUICK = Size(3, 20, 480, 8, 3, 4.0, 50, 5_000, 1_000)  # shows that the benchmark runs; not for reports
CHECK = Size(rounds=5, passes=24, streams=640)  # for `--check`: half a minute


class Samples(defaultdict[str, list[float]]):
    """Name to one value per round."""

    def __init__(self) -> None:
        super().__init__(list)

    def ratios(self, name: str, base: str) -> list[float]:
        """The ratio of each round: both values were taken at nearly the same time."""
        return [one / other for one, other in zip(self[name], self[base], strict=True)]


def each(figure: Callable[[list[float]], float], rounds: Mapping[str, list[float]]) -> dict[str, float]:
    """A figure of the rounds of each name, such as their median."""
    return {name: figure(values) for name, values in rounds.items()}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and tail."""
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    return {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "p999": cuts[998]}


def cpu_seconds(*pids: int) -> float:
    """CPU time of all threads of these processes so far, user and system, to the microsecond."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # as `clock_getcpuclockid(3)` does


def resident_mib(*pids: int) -> list[float]:
    """Resident memory of each process."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return [count * os.sysconf("SC_PAGE_SIZE") / 2**20 for count in pages]


def describe() -> dict[str, object]:
    """The machine that figures are measured on."""
    import grpc
    import onnxruntime

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name") or platform.processor(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags],
        "cores": usable_cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "grpc": grpc.__version__,
    }

"""The machine, and what a process on it has used."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from semroute_extproc.encoder.cores import usable_cores

_CPUCLOCK_SCHED = 2
"""Kind of a process' CPU clock in a Linux clock id (`clock_getcpuclockid(3)`)."""


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, user and system, to the microsecond."""
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def describe() -> dict[str, object]:
    """What figures are measured on."""
    import grpc
    import onnxruntime

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": model or platform.processor(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags],
        "cores": usable_cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "grpc": grpc.__version__,
    }

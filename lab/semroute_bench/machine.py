"""The machine, and the resources a process has used."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from semroute_extproc.encoder.cores import usable_cores


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

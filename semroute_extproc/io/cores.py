"""The number of cores this process may use, from its CPU affinity and its cgroups' quotas."""

import contextlib
import os
import re
from pathlib import Path, PurePosixPath


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Whole cores, at least one; a quota of 2.5 gives 2, which leaves half a core to the event loop."""
    cores = float(len(os.sched_getaffinity(0)))
    # cgroup v2 has one hierarchy, on a line "0::/path".
    for line in re.findall("^0::/(.*)$", own.read_text() if own.exists() else "", re.MULTILINE):
        for group in (PurePosixPath(line), *PurePosixPath(line).parents):
            # A path outside the container has "..": then only the mounted root, its own cgroup, applies.
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = map(int, (groups / group / "cpu.max").read_text().split())
                if quota > 0 and ".." not in group.parts:
                    cores = min(cores, quota / period)
    return max(1, int(cores))

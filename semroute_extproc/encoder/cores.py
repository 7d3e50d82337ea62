"""How many cores this process may use: the scheduler's mask, limited by the quotas of its control groups.

A container limited to two of 64 cores sees all 64; with a thread for each, the kernel would interrupt passes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted."""

OWN_GROUP = Path("/proc/self/cgroup")
"""The control group of this process."""


def usable_cores(groups: Path = GROUPS, own: Path = OWN_GROUP) -> int:
    """Whole cores, at least one.

    A quota of 2.5 gives 2: the rest is for the event loop. A container's request is not a limit.
    """
    return max(1, int(min([float(len(os.sched_getaffinity(0))), *_quotas(groups, own)])))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The quota in cores of every limited group from this process's own up to the root."""
    # Version 2 of the control groups has one hierarchy, on a line "0::/path".
    lines = own.read_text().splitlines() if own.exists() else []
    for place in (PurePosixPath(line[4:]) for line in lines if line.startswith("0::/")):
        for group in (place, *place.parents):
            # In a container this may be the host's path, and the mounted root is the container's own group.
            if ".." in group.parts:
                continue
            try:
                quota, period = (groups / group / "cpu.max").read_text().split()
                if quota != "max" and int(quota) > 0:
                    yield int(quota) / int(period)
            except (OSError, ValueError, ZeroDivisionError):
                continue

"""How many cores this process may use.

The mask of the scheduler and the quotas of the control groups it is in: a container limited to two of
64 cores sees all of them, and a thread for each would have its time cut off in the middle of a pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

GROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted."""

OWN_GROUP = Path("/proc/self/cgroup")
"""The group of this process, as a path below that."""


def usable_cores(groups: Path = GROUPS, own: Path = OWN_GROUP) -> int:
    """Whole cores, at least one.

    A quota of two and a half is two: the half is for what runs beside the lanes. What a container merely
    requests is no limit and cannot be seen from within.
    """
    cores = float(len(os.sched_getaffinity(0)))
    return max(1, int(min([cores, *_quotas(groups, own)])))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    """The quota in cores of every group from this process's own up to the root, where there is one."""
    try:
        # Version 2 of the control groups has one hierarchy, whose line begins so.
        lines = [line for line in own.read_text().splitlines() if line.startswith("0::/")]
    except OSError:
        return
    for line in lines:
        place = PurePosixPath(line.removeprefix("0::/"))
        for group in (place, *place.parents):
            # Within a container the path may be the host's; what is mounted is then its own group.
            if ".." not in group.parts and (quota := _quota(groups / group)):
                yield quota


def _quota(group: Path) -> float:
    """Cores that a group may use; 0 without a limit."""
    try:
        most, period = (group / "cpu.max").read_text().split()
        return int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return 0.0

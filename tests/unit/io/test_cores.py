"""The cores that a process may use: the scheduler's mask, and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from semroute_extproc.io.cores import usable_cores

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))


def usable(folder: Path, own: str, **quotas: str) -> int:
    (folder / "own").write_text(own)
    for place, quota in quotas.items():
        group = folder / "groups" / place.replace("__", "/").removeprefix("root")
        group.mkdir(parents=True, exist_ok=True)
        (group / "cpu.max").write_text(quota + "\n")
    return usable_cores(folder / "groups", folder / "own")


def test_without_a_quota_it_is_the_schedulers_mask(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "none") == HERE


@pytest.mark.usefixtures("many")
class TestQuota:
    @pytest.mark.parametrize(
        ("quota", "expected"),
        [
            ("200000 100000", 2),
            ("250000 100000", 2),
            ("50000 100000", 1),
            ("6400000 50000", 64),
            ("max 100000", 64),
            ("", 64),
            ("0 0", 64),
        ],
    )
    def test_a_containers_limit_counts_in_whole_cores(
        self, tmp_path: Path, quota: str, expected: int
    ) -> None:
        assert usable(tmp_path, "0::/\n", root=quota) == expected

    def test_the_tightest_group_on_the_way_to_the_root_counts(self, tmp_path: Path) -> None:
        own = "0::/pod/container\n"
        assert usable(tmp_path, own, pod="300000 100000", pod__container="max 100000") == 3

    def test_a_path_of_the_hosts_leads_to_the_root_that_is_mounted(self, tmp_path: Path) -> None:
        assert usable(tmp_path, "0::/../../kubepods/x\n", root="400000 100000") == 4

    def test_the_first_version_of_control_groups_is_not_read(self, tmp_path: Path) -> None:
        assert usable(tmp_path, "4:cpu,cpuacct:/x\n", x="100000 100000") == 64

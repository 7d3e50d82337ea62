"""Rates by workers and by requests at once: a short run here, the figures where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from semroute_bench import scaling
from semroute_bench.samples import Size
from semroute_bench.sidecar import gpu_missing


async def test_without_a_gpu_or_the_cores_it_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    if gpu_missing():
        assert await scaling.on_gpu(Size(), tmp_path, said.append) == {"gpu": {"left out": "no CUDA device"}}
        assert "encoder.device: cuda was asked for" in said[0]
    if scaling.usable_cores() < scaling.CPU_CORES_MIN:
        assert "16 cores" in (await scaling.on_cpu(Size(), tmp_path, said.append))["workers"]["left out"]


@pytest.mark.gpu
async def test_rates_and_tails_on_a_gpu(tmp_path: Path) -> None:
    if why := gpu_missing():
        pytest.skip(f"no CUDA device, so decisions per second and p99 are unmeasured here: {why}")
    found = (await scaling.on_gpu(Size(scaling_requests=2_000), tmp_path, print))["gpu"]
    for row in found["rows"]:
        print(found["device"], row)
        assert row["decided"] == 1.0
    assert {row["at once"] for row in found["rows"] if row["workers"] == 1} == set(scaling.AT_ONCE)

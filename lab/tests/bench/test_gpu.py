"""The row of a GPU: a short run where there is one, a visible line where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from semroute_bench import direct
from semroute_bench.measuring import Size
from semroute_demo.process import ProcessError


@pytest.mark.gpu
async def test_a_gpu_is_measured_or_said_to_be_missing(tmp_path: Path) -> None:
    try:
        found = (await direct.gpu(Size(gpu_requests=2_000), tmp_path))["gpu"]
    except ProcessError as error:
        if "encoder.device: cuda was asked for" not in str(error):
            raise
        pytest.skip(f"no CUDA device, so decisions per second and p99 are unmeasured here: {error}")
    print(found)
    assert found["decided"] == 1.0

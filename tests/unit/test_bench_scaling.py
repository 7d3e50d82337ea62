"""Rates by workers and by requests at once: the plumbing here, the figures where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from semroute_extproc import bundle
from semroute_extproc.bench import scaling
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.errors import BundleError, ConfigError


async def test_workers_are_loaded_by_clients_of_their_own(tmp_path: Path) -> None:
    rows = await scaling.measure([1, 2], [1, 4], 24, tmp_path, encoder__lanes="1")
    assert [(row["workers"], row["at once"]) for row in rows] == [(1, 1), (1, 4), (2, 4)]
    for row in rows:
        assert row["decided"] == 1.0
        assert row["a second"] > 0
        assert row["ms"]["p50"] <= row["ms"]["p99"]


def _cuda() -> str:
    """Why there is no GPU here; empty if there is one."""
    try:
        CudaModel(bundle.load(bundle.default_bundle(), ("cuda",))).close()
    except (ConfigError, BundleError) as error:
        return str(error)
    return ""


async def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if not _cuda():
        pytest.skip("there is a GPU here")
    said: list[str] = []
    assert await scaling.on_gpu(100, tmp_path, said.append) == {"left out": "no CUDA device"}
    assert "encoder.device: cuda was asked for" in said[0]


async def test_without_the_cores_many_workers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "CPU_CORES_MIN", 10_000)
    assert "10000 cores" in (await scaling.on_cpu(100, tmp_path, lambda _: None))["left out"]


@pytest.mark.gpu
async def test_rates_and_tails_on_a_gpu(tmp_path: Path) -> None:
    if why := _cuda():
        pytest.skip(f"no CUDA device, so decisions a second and p99 are unmeasured here: {why}")
    found = await scaling.on_gpu(2_000, tmp_path, print)
    for row in found["rows"]:
        print(found["device"], row)
        assert row["decided"] == 1.0
    assert {row["at once"] for row in found["rows"] if row["workers"] == 1} == set(scaling.AT_ONCE)

"""Rates by workers and by requests at once: the plumbing here, the figures where there is a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from semroute_bench import scaling

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import CudaModel
from semroute_extproc.errors import BundleError, ConfigError


async def test_workers_are_loaded_by_clients_of_their_own(tmp_path: Path) -> None:
    rows = await scaling.measure([1, 2], [1, 4], 24, tmp_path, encoder__threads="1")
    assert [(row["workers"], row["at once"]) for row in rows] == [(1, 1), (1, 4), (2, 4)]
    for row in rows:
        assert row["decided"] == 1.0
        assert row["a second"] > 0
        assert row["ms"]["p50"] <= row["ms"]["p99"]


def _cuda() -> str:
    """Why there is no GPU here; empty if there is one."""
    try:
        CudaModel(bundle.load(bundle.default_bundle(), ("cuda",)))
    except (ConfigError, BundleError) as error:
        return str(error)
    return ""


async def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if not _cuda():
        pytest.skip("there is a GPU here")
    said: list[str] = []
    assert await scaling.on_gpu(100, tmp_path, said.append) == {"left out": "no CUDA device"}
    assert "encoder.device: cuda was asked for" in said[0]


async def test_with_a_gpu_every_number_of_workers_and_requests_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is made up, and the sidecar is not started."""
    asked: dict[str, Any] = {}

    async def measure(workers: Any, at_once: Any, requests: int, _: Path, **settings: str) -> list[Any]:
        asked.update(workers=workers, at_once=at_once, requests=requests, **settings)
        return ["row"]

    monkeypatch.setattr(scaling, "CudaModel", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setattr(scaling, "_device", lambda: "NVIDIA H200")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(10)))
    assert await scaling.on_gpu(100, tmp_path, print) == {"device": "NVIDIA H200", "rows": ["row"]}
    assert asked["encoder__device"] == "cuda"
    assert asked["workers"] == [1, 2, 4], "two cores each"
    assert (asked["at_once"][0], asked["at_once"][-1]) == (1, 512)


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

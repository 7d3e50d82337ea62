"""The proof of a device: all of it on the CPU, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
from click.testing import CliRunner
from semroute_bench import gpu
from semroute_bench.measuring import Size
from semroute_bench.sidecar import default_model
from semroute_demo.process import ProcessError

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import CudaModel

SMALL = Size(passes=3, gpu_requests=64)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> gpu.Figures:
    """A run with the CPU as the device."""
    return gpu.run(SMALL, tmp_path_factory.mktemp("device"), "cpu")


def test_a_device_is_named_by_the_provider_that_runs(found: gpu.Figures) -> None:
    assert (found["device"], found["provider"]) == ("cpu", "CPUExecutionProvider")


def test_a_model_agrees_with_itself(found: gpu.Figures) -> None:
    agreed = {"texts": gpu.COMPARED, "same domain": 1.0, "difficulty logit apart": 0.0}
    assert found["agreement"] == {**agreed, "least cosine": pytest.approx(1.0)}


def test_the_graph_of_the_gpu_agrees_with_that_of_the_cpu_in_passes_of_many_texts() -> None:
    shipped = bundle.load(bundle.default_bundle(), ("cpu", "cuda"))
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(shipped.graph("cuda")), providers=cpu)
    agreed = gpu.agreement(CudaModel(shipped, session), default_model(), 128)
    print(agreed)
    assert agreed["same domain"] > 0.9
    assert agreed["least cosine"] > 0.9
    assert 0 < agreed["difficulty logit apart"] < 1


def test_every_shape_and_level_has_a_row(found: gpu.Figures) -> None:
    assert [(row["tokens"], row["texts"]) for row in found["passes"]] == [
        (tokens, texts) for tokens in gpu.TOKENS for texts in (1,)
    ]
    assert [row["at once"] for row in found["rates"]] == list(gpu.LEVELS)
    assert all(row["decided"] == 1.0 for row in found["rates"])


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(gpu.main, ["--quick"])
    if done.exit_code == 0:
        pytest.skip("there is a CUDA device")
    assert "encoder.device: cuda was asked for" in done.output


@pytest.mark.gpu
async def test_a_gpu_is_measured_or_said_to_be_missing(tmp_path: Path) -> None:
    try:
        row = (await gpu.measure(Size(gpu_requests=2_000), tmp_path))["gpu"]
    except ProcessError as error:
        if "encoder.device: cuda was asked for" not in str(error):
            raise
        pytest.skip(f"no CUDA device, so decisions per second and p99 are unmeasured here: {error}")
    assert row["decided"] == 1.0

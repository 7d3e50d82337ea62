"""Passes on a GPU: shapes that recur, and smaller passes when memory is short."""

from __future__ import annotations

import itertools

import fake_gpu
import numpy as np
import pytest
from fake_gpu import Gpu

from semroute_extproc.encoder import bundle
from semroute_extproc.encoder.cuda import (
    BATCH_MAX,
    BATCH_TOKENS_MAX,
    SMALL_PASS_SECONDS,
    CudaModel,
    is_out_of_memory,
    padded_lengths,
)
from semroute_extproc.encoder.preprocess import Framed
from semroute_extproc.encoder.signals import calibrate
from semroute_extproc.errors import BundleError, ConfigError
from semroute_extproc.events import Event, OutOfMemory
from semroute_extproc.serve.offline import Scorer

SHIPPED = bundle.load(bundle.default_bundle())
WINDOW = SHIPPED.manifest.encoder.window


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def texts(*lengths: int) -> list[Framed]:
    return [Framed([7] * length, [0.0] * 12, length, False, 0.0) for length in lengths]


def test_lengths_are_few_and_end_with_the_window() -> None:
    assert padded_lengths(128) == [16, 24, 32, 48, 64, 96, 128]
    assert padded_lengths(100) == [16, 24, 32, 48, 64, 96, 100]
    assert padded_lengths(8) == [8]


@pytest.mark.parametrize("window", [8, 100, 128, 512, 8192])
def test_at_most_a_third_of_a_longer_text_is_padding(window: int) -> None:
    lengths = padded_lengths(window)
    assert lengths == sorted(set(lengths))
    for shorter, longer in itertools.pairwise(lengths):
        assert (longer - shorter - 1) / longer < 1 / 3


def test_outputs_are_in_the_order_of_the_texts(gpu: Gpu) -> None:
    lengths = [5, 100, 7, 1, 60, 3]
    outputs = CudaModel(SHIPPED, gpu).run(texts(*lengths))
    assert [output.difficulty_logit for output in outputs] == lengths


def test_texts_of_a_kind_make_the_same_shape(gpu: Gpu) -> None:
    model = CudaModel(SHIPPED, gpu)
    for length in range(49, 65):
        model.run(texts(length))
    assert set(gpu.shapes) == {(1, 64)}


def test_no_pass_has_more_tokens_than_it_may(gpu: Gpu) -> None:
    lengths = 4 * list(range(1, WINDOW))
    outputs = CudaModel(SHIPPED, gpu).run(texts(*lengths))
    assert [output.difficulty_logit for output in outputs] == lengths
    assert sum(count * length for count, length in gpu.shapes) > BATCH_TOKENS_MAX
    assert max(count * length for count, length in gpu.shapes) <= BATCH_TOKENS_MAX


def test_the_largest_pass_is_within_the_tokens_of_a_pass(gpu: Gpu) -> None:
    CudaModel(SHIPPED, gpu).warm_up()
    assert (1, WINDOW) in gpu.shapes
    assert max(count * length for count, length in gpu.shapes) == min(BATCH_MAX * WINDOW, BATCH_TOKENS_MAX)


def test_a_pass_without_memory_is_run_as_smaller_ones(gpu: Gpu) -> None:
    model = CudaModel(SHIPPED, gpu)
    emitted: list[Event] = []
    model.emit = emitted.append
    gpu.texts_max = 20
    outputs = model.run(texts(*range(1, 101)))
    assert [output.difficulty_logit for output in outputs] == list(range(1, 101))
    assert emitted == [OutOfMemory(SHIPPED.manifest.name)] * 3, "100, 50, 25, and then it fits"


def test_passes_stay_small_for_a_while_and_grow_again(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr("semroute_extproc.encoder.cuda.monotonic", lambda: now[0])
    model = CudaModel(SHIPPED, gpu)
    gpu.texts_max = 10
    model.run(texts(*[16] * 16))
    gpu.shapes.clear()
    gpu.texts_max = 1_000
    model.run(texts(*[16] * 16))
    assert gpu.shapes == [(8, 16)] * 2
    now[0] += SMALL_PASS_SECONDS + 1.0
    gpu.shapes.clear()
    model.run(texts(*[16] * 16))
    assert gpu.shapes == [(16, 16)]


def test_a_device_without_memory_for_one_text_fails(gpu: Gpu) -> None:
    gpu.texts_max = 0
    with pytest.raises(RuntimeError, match="allocate"):
        CudaModel(SHIPPED, gpu).run(texts(*[16] * BATCH_MAX))


def test_another_failure_is_not_tried_again_in_smaller_passes(gpu: Gpu) -> None:
    model = CudaModel(SHIPPED, gpu)
    emitted: list[Event] = []
    model.emit = emitted.append
    gpu.there = False
    with pytest.raises(RuntimeError, match="CUDA failure"):
        model.run(texts(16, 16))
    assert emitted == []


@pytest.mark.parametrize(
    "said",
    [
        fake_gpu.ARENA,
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "cudaErrorMemoryAllocation: api failed",
    ],
)
def test_memory_that_is_short_is_recognised_by_what_is_said(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))


def test_a_device_that_cannot_do_the_first_pass_is_refused(gpu: Gpu) -> None:
    gpu.texts_max = 0
    with pytest.raises(ConfigError, match=r"encoder\.device: cuda: the first pass failed"):
        CudaModel(SHIPPED, gpu).warm_up()


def test_padding_changes_nothing_that_matters() -> None:
    """The GPU's own graph, on the CPU: padded to the next length, and as it is."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(SHIPPED.graph("cuda")), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    ids = np.arange(1_000, 1_034, dtype=np.int64)[None]
    surface = np.zeros((1, len(SHIPPED.manifest.surface)), np.float32)
    plain = session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids), "surface": surface})
    pad = ((0, 0), (0, 48 - ids.shape[1]))
    padded = session.run(
        names,
        {
            "input_ids": np.pad(ids, pad, constant_values=SHIPPED.manifest.encoder.pad_id),
            "attention_mask": np.pad(np.ones_like(ids), pad),
            "surface": surface,
        },
    )
    for name, one, other in zip(names, plain, padded, strict=True):
        assert np.abs(one - other).max() < 0.01, name


def cuda_or_skip() -> CudaModel:
    try:
        return CudaModel(SHIPPED)
    except (ConfigError, BundleError) as error:
        pytest.skip(f"no CUDA device, so parity with the CPU is unmeasured here: {error}")


@pytest.mark.gpu
def test_on_a_gpu_the_signals_are_those_of_the_cpu() -> None:
    model = cuda_or_skip()
    model.warm_up()
    prompts = [
        "What is photosynthesis?",
        "Prove that sqrt(2) is irrational.",
        "Write a lock-free queue in C++ and explain its memory fences.",
        "word " * 300,
    ] * 40
    scorer = Scorer.of(SHIPPED.path, "cpu")
    together = model.run([model.framer.frame(prompt) for prompt in prompts])
    for prompt, output in zip(prompts, together, strict=True):
        one, other = scorer.score(prompt), calibrate(SHIPPED, output, "en")
        assert one.domain == other.domain
        assert one.difficulty == pytest.approx(other.difficulty, abs=0.05)

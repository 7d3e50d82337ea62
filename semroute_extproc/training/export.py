"""From a fitted network to a published bundle: graphs, quantisation, parity, manifest, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semroute_extproc.bundle import FileEntry, Manifest, load, write_manifest
from semroute_extproc.errors import BundleError
from semroute_extproc.training.frames import Frames
from semroute_extproc.training.model import Network

OPSET = 17
"""ONNX operator set of the graphs: the first with LayerNormalization, which both providers fuse."""

INPUTS = ("input_ids", "attention_mask", "surface")
OUTPUTS = ("sentence_embedding", "domain_logits", "difficulty_logit", "task_logits", "neighbour_embedding")
"""Names of the outputs; a network may leave out the last."""

QUANTISED_HEADS = ("/heads/memory/MatMul",)
"""The one product of the heads that is as large as the encoder's."""

PARITY_FP32 = 1e-4
"""Largest difference of any output between torch and its fp32 graph, relative to 1 + its size."""

CPU_GRAPH, CUDA_GRAPH = "model.int8.onnx", "model.fp16.onnx"


def write_fp32(network: Network, file: Path) -> None:
    """Trace the network to an fp32 graph with dynamic batch and length."""
    network.eval()
    example = (
        torch.randint(999, 2000, (2, 9)),
        torch.ones(2, 9, dtype=torch.long),
        torch.zeros(2, len(network.heads.surface_mean)),
    )
    with torch.inference_mode():
        outputs = OUTPUTS[: len(network(*example))]
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in (*INPUTS, *outputs)}
    for name in ("input_ids", "attention_mask"):
        axes[name][1] = "tokens"
    with warnings.catch_warnings():
        # The tracer warns of Python numbers, which are constants of the architecture here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            example,
            str(file),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(outputs),
            dynamic_axes=axes,
        )


def write_int8(fp32: Path, file: Path, keep: Sequence[str] = ()) -> None:
    """Dynamic int8, one scale per output channel, of every large matrix product but the nodes in `keep`.

    Weights are unsigned: AVX2 adds products of unsigned and signed bytes in pairs to sixteen bits,
    which saturate, so that signed weights give other and worse figures on a CPU without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    heads = [name for name in _matrix_nodes(fp32) if name.startswith("/heads/")]
    small = [name for name in heads if name not in QUANTISED_HEADS]
    # The quantiser turns Gemm into MatMul, under this name, before it looks at the names to leave out.
    renamed = [f"{name}_MatMul" for name in small]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(
            fp32,
            file,
            per_channel=True,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=[*small, *renamed, *keep],
            extra_options={"MatMulConstBOnly": True},
        )


def _matrix_nodes(fp32: Path) -> list[str]:
    import onnx

    graph = onnx.load(str(fp32)).graph
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm", "Gather")]


def write_fp16(fp32: Path, file: Path) -> None:
    """Half-precision weights and arithmetic with float32 inputs and outputs, for CUDA."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(onnx.load(str(fp32)), keep_io_types=True)
    onnx.save(model, str(file))


def run_graph(file: Path, frames: Frames, index: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs of a graph on the CPU, one text a pass as in serving; each [rows, …]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = []
    for i in index:
        inputs = dict(zip(INPUTS, (tensor.numpy() for tensor in frames.batch([i])), strict=True))
        rows.append(session.run(names, inputs))
    return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(names)}


def run_torch(network: Network, frames: Frames, index: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """The same from the network itself."""
    network.eval()
    with torch.inference_mode():
        rows = [[output.numpy() for output in network(*frames.batch([i]))] for i in index]
    names = OUTPUTS[: len(rows[0])]
    return {name: np.concatenate([row[at] for row in rows]) for at, name in enumerate(names)}


def largest_difference(
    a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, float]:
    """Largest absolute difference of each output."""
    return {name: float(np.abs(a[name] - b[name]).max()) for name in a}


def check_parity(network: Network, fp32: Path, frames: Frames, index: Sequence[int]) -> dict[str, float]:
    """Compare torch with the fp32 graph; raises BundleError beyond `PARITY_FP32`."""
    ours, graph = run_torch(network, frames, index), run_graph(fp32, frames, index)
    for name, values in ours.items():
        worst = float((np.abs(values - graph[name]) / (1.0 + np.abs(values))).max())
        if worst > PARITY_FP32:
            raise BundleError(f"{fp32}: {name} differs from torch by {worst:.2e}, over {PARITY_FP32:g}")
    return largest_difference(ours, graph)


def file_entry(file: Path) -> FileEntry:
    """Checksum and size of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=file.stat().st_size)


def publish(manifest: Manifest, files: Mapping[str, Path | bytes], target: Path) -> None:
    """Write a bundle beside `target`, check that it loads, and put it in place by renaming.

    `manifest.files` is filled here. Nothing half-written is ever under `target`: an interrupted
    run leaves a `.partial` directory, which is no bundle and may be removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    staging.chmod(0o755)
    try:
        for name, content in files.items():
            if isinstance(content, bytes):
                (staging / name).write_bytes(content)
            else:
                shutil.copyfile(content, staging / name)
        listed = {name: file_entry(staging / name) for name in files if name != "CARD.md"}
        write_manifest(staging, manifest.model_copy(update={"files": listed}))
        load(staging)
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    staging.rename(target)
    shutil.rmtree(old)

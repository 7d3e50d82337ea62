"""From a fitted network to its float32 graph, compared with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semroute_extproc.errors import BundleError
from semroute_lab.train.frames import Frames
from semroute_lab.train.model import Network

OPSET = 20
"""ONNX operator set of the graphs: the first with Gelu. As five plain operators it is one pass over the
widest layer for each, unless the runtime finds the pattern again, which in half precision it does not."""

INPUTS = ("input_ids", "attention_mask", "surface")
OUTPUTS = ("sentence_embedding", "domain_logits", "difficulty_logit", "task_logits", "neighbour_embedding")
"""Names of the outputs; a network may leave out the last."""

PARITY_FP32 = 1e-4
"""Largest difference of any output between torch and its fp32 graph, relative to 1 + its size."""


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

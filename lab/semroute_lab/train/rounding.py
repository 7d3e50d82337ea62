"""Rounding a graph's weights to seven bits so that its products keep their values, not each weight its own.

GPTQ (Frantar et al., arXiv 2210.17323, section 3): the inputs of a product are rounded one after the
other, and the inputs that are still free compensate the error, by the correlations of the inputs on
calibration texts. The largest weights of a row may be clipped for a finer grid; the same measure
chooses the clip.

Seven bits and a sign, because AVX2 without VNNI adds products of unsigned and signed bytes in pairs
to sixteen bits: 2 x 255 x 64 is the largest sum that does not saturate there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STEPS = 64
"""Weights are multiples -64 to 64 of an output channel's scale: ONNX Runtime's reduced range of int8."""

DAMPING = 0.01  # Added to the correlations' diagonal, in means of it
BLOCK = 64  # Columns whose error is compensated at once in all later columns
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Candidates for the largest value of a row's grid, as a share of its largest weight."""


def round_products(
    fp32: Path, file: Path, products: Sequence[str], feeds: Iterable[Mapping[str, Array]]
) -> None:
    """Write `fp32` to `file` with the weights of the nodes `products` rounded; still a float32 graph.
    `products` are MatMul nodes with a constant second input; `feeds` are the graph's inputs for each
    calibration text.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(fp32))
    nodes = {node.name: node for node in model.graph.node}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {name: nodes[name].input[0] for name in products}
    correlations = _correlations(fp32, sorted(set(read.values())), feeds)
    for name in products:
        tensor = weights[nodes[name].input[1]]
        matrix = rounded(numpy_helper.to_array(tensor).T, correlations[read[name]])
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(matrix.T), tensor.name))
    onnx.save(model, str(file))


def rounded(weight: Array, correlations: Array) -> Array:
    """`weight` [out, in] on a grid per row of `STEPS` either side of 0, given sums of x x^T [in, in].
    The largest weight of a row is at the end of its grid, so that quantising the result by its largest weight
    yields the same grid.
    """
    damped = correlations.astype(np.float64)
    spread = max(float(np.diag(damped).mean()), 1e-12)
    damped[np.diag_indices_from(damped)] += DAMPING * spread
    scale = _scale(weight.astype(np.float64), np.diag(damped))
    order = np.argsort(-np.diag(damped), kind="stable")
    work = weight[:, order].astype(np.float64)
    largest = np.abs(work).argmax(1)
    # The upper Cholesky factor of the inverse has the feedback of every step (GPTQ, step 3).
    factor = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    out = np.empty_like(work)
    for start in range(0, work.shape[1], BLOCK):
        end = min(start + BLOCK, work.shape[1])
        lost = np.empty((len(work), end - start))
        for at in range(start, end):
            column = work[:, at]
            steps = np.clip(np.rint(column / scale), -STEPS, STEPS)
            steps[largest == at] = STEPS * np.sign(column[largest == at])
            out[:, at] = steps * scale
            lost[:, at - start] = (column - out[:, at]) / factor[at, at]
            work[:, at + 1 : end] -= np.outer(lost[:, at - start], factor[at, at + 1 : end])
        work[:, end:] -= lost @ factor[start:end, end:]
    back = np.empty_like(out)
    back[:, order] = out
    return back.astype(weight.dtype)


def _scale(weight: Array, power: Array) -> Array:
    """The grid's step of each row [out] with the smallest error when inputs have `power` [in]."""
    largest = np.maximum(np.abs(weight).max(1), 1e-12)
    scales = np.stack([largest * clip / STEPS for clip in CLIPS])
    lost = np.stack(
        [
            ((np.clip(np.rint(weight / s[:, None]), -STEPS, STEPS) * s[:, None] - weight) ** 2 * power).sum(1)
            for s in scales
        ]
    )
    best: Array = scales[lost.argmin(0), np.arange(len(weight))]
    return best


def _correlations(
    fp32: Path, tensors: Sequence[str], feeds: Iterable[Mapping[str, Array]]
) -> dict[str, Array]:
    """Sums of x x^T [d, d] over every row of each tensor of the graph, on every feed."""
    import onnx
    import onnxruntime

    model = onnx.load(str(fp32))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    sums: dict[str, Array] = {}
    if not tensors:
        return sums
    for feed in feeds:
        for name, value in zip(tensors, session.run(list(tensors), dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            sums[name] = sums.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return sums

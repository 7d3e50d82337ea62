"""From a float32 graph to the served ones, and back: int8 for the CPU, float16 for CUDA. Needs no torch."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder.preprocess import Framed
from semroute_lab.train.rounding import round_products

CPU_GRAPH, CUDA_GRAPH = "model.int8.onnx", "model.fp16.onnx"

QUANTISED_HEADS = ("/heads/memory/MatMul",)  # The only product of the heads that is as large as the encoder's
CALIBRATION_TEXTS_MAX = 256  # Texts for the rounding of the weights
Feed = Mapping[str, np.ndarray[Any, Any]]


def feeds(framed: Iterable[Framed]) -> list[Feed]:
    """The graph's inputs for each text, one per batch."""
    return [
        {
            "input_ids": np.array([each.ids], dtype=np.int64),
            "attention_mask": np.ones((1, len(each.ids)), dtype=np.int64),
            "surface": np.array([each.surface], dtype=np.float32),
        }
        for each in framed
    ]


def write_int8(fp32: Path, file: Path, calibration: Sequence[Feed]) -> None:
    """Dynamic int8, one scale per output channel, of every large matrix product.
    Weights have seven bits and a sign, which no processor saturates, and the encoder's are rounded on the
    `calibration` texts; see `rounding`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = _matrix_nodes(fp32)
    small = [name for name in names if name.startswith("/heads/") and name not in QUANTISED_HEADS]
    # The quantiser turns Gemm into MatMul, under this name, before it applies the list of exclusions.
    renamed = [f"{name}_MatMul" for name in small]
    products = [name for name in names if name.startswith("/encoder/")]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        exact = Path(folder) / "rounded.onnx"
        round_products(fp32, exact, products, calibration[:CALIBRATION_TEXTS_MAX])
        quantize_dynamic(
            exact,
            file,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[*small, *renamed],
            extra_options={"MatMulConstBOnly": True},
        )


def _matrix_nodes(fp32: Path) -> list[str]:
    """Names of the nodes that multiply by, or look up in, a constant matrix."""
    import onnx

    graph = onnx.load(str(fp32)).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if (node.op_type in ("MatMul", "Gemm") and node.input[1] in constants)
        or (node.op_type == "Gather" and node.name.startswith("/heads/"))
    ]


def write_fp16(fp32: Path, file: Path) -> None:
    """Half-precision weights and arithmetic with float32 inputs and outputs, for CUDA."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_float_to_float16(onnx.load(str(fp32)), keep_io_types=True)
    onnx.save(model, str(file))


def write_widened(fp16: Path, file: Path) -> None:
    """The float32 graph of a float16 one: the same weights, to half precision."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.load(str(fp16))
    graph = model.graph

    def widen(tensor: Any) -> None:
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))

    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    del graph.value_info[:]
    _without_casts(graph)
    onnx.save(model, str(file))


def _without_casts(graph: Any) -> None:
    """Remove the casts between a float16 graph and its float32 inputs and outputs."""
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.name.startswith("graph_input_cast"):
            renamed[node.output[0]] = node.input[0]
        elif node.name.startswith("graph_output_cast"):
            renamed[node.input[0]] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)

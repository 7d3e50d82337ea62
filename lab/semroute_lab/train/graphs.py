"""From a float32 graph to the ones that are served, and back: int8 for the CPU, float16 for CUDA.

Nothing here needs torch: a bundle's CPU graph can be made anew from its CUDA graph.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder.bundle import Bundle
from semroute_extproc.encoder.preprocess import Framed, Framer
from semroute_extproc.errors import BundleError, DataError
from semroute_lab.train.publish import publish
from semroute_lab.train.rounding import round_products

CPU_GRAPH, CUDA_GRAPH = "model.int8.onnx", "model.fp16.onnx"

QUANTISED_HEADS = ("/heads/memory/MatMul",)
"""The one product of the heads that is as large as the encoder's."""

CALIBRATION_TEXTS_MAX = 256
"""Texts that the rounding of the weights looks at."""

TEXTS_MIN = 32
"""Fewer texts say too little of the inputs' correlations."""

Say = Callable[[str], None]
Feed = Mapping[str, np.ndarray[Any, Any]]


def feeds(framed: Iterable[Framed]) -> list[Feed]:
    """The graph's inputs for each text, one a batch."""
    return [
        {
            "input_ids": np.array([each.ids], dtype=np.int64),
            "attention_mask": np.ones((1, len(each.ids)), dtype=np.int64),
            "surface": np.array([each.surface], dtype=np.float32),
        }
        for each in framed
    ]


def write_int8(fp32: Path, file: Path, calibration: Sequence[Feed], keep: Sequence[str] = ()) -> None:
    """Dynamic int8, one scale per output channel, of every large matrix product but the nodes in `keep`.

    Weights have seven bits and a sign, which no processor saturates, and the encoder's are rounded on
    the `calibration` texts; see `rounding`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = _matrix_nodes(fp32)
    small = [name for name in names if name.startswith("/heads/") and name not in QUANTISED_HEADS]
    # The quantiser turns Gemm into MatMul, under this name, before it looks at the names to leave out.
    renamed = [f"{name}_MatMul" for name in small]
    products = [name for name in names if name.startswith("/encoder/") and name not in keep]
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
            nodes_to_exclude=[*small, *renamed, *keep],
            extra_options={"MatMulConstBOnly": True},
        )


def requantise(source: Bundle, target: Path, texts: Path, say: Say) -> None:
    """Publish `source` in `target` with a CPU graph made anew from its CUDA graph, rounded on `texts`.

    Raises DataError if the file has too few texts, BundleError if the bundle has no CUDA graph. The card
    is not copied: it is of another graph.
    """
    lines = [line.strip() for line in texts.read_text(encoding="utf-8", errors="replace").splitlines()]
    chosen = [line for line in lines if line]
    if len(chosen) < TEXTS_MIN:
        raise DataError(f"{texts}:1:: {len(chosen)} texts, at least {TEXTS_MIN} are needed")
    if "cuda" not in source.manifest.graphs:
        raise BundleError(f"{source.path}: there is no CUDA graph to make the CPU graph from")
    chosen = chosen[:: max(1, len(chosen) // CALIBRATION_TEXTS_MAX)][:CALIBRATION_TEXTS_MAX]
    framer = Framer(source.path / "tokenizer.json", source.manifest.encoder)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / CPU_GRAPH
        write_widened(source.path / source.manifest.graphs["cuda"], fp32)
        say(f"rounding the weights on {len(chosen)} texts")
        write_int8(fp32, int8, feeds(map(framer.frame, chosen)))
        files: dict[str, Path | bytes] = {
            name: source.path / name
            for name in source.manifest.files
            if name != source.manifest.graphs.get("cpu")
        }
        manifest = source.manifest.model_copy(update={"graphs": {**source.manifest.graphs, "cpu": CPU_GRAPH}})
        publish(manifest, {**files, CPU_GRAPH: int8}, target)
    say(f"published {target}")


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
    """Take out the casts between a float16 graph and its float32 inputs and outputs."""
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

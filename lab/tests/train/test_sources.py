"""The declared sources, on small files of the published shapes."""

import csv
import gzip
import json

import pytest
from semroute_lab.train.datasets import DOMAINS, FAMILIES, TASKS, Part
from semroute_lab.train.sources import SOURCES, read_all, read_handwritten

from semroute_extproc.errors import DataError

PRO_HEADER = ["question_id", "category", "src", "split", "ori_mmlu", "question", "options", "answer"]


def write(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def data(tmp_path):
    options = json.dumps(["yes", "no"])
    write(
        tmp_path / "matrices/mmlu_pro_questions.csv.gz",
        PRO_HEADER,
        [
            ["1", "law", "ori_mmlu-jurisprudence", "train", "True", "Is it binding?", options, "A"],
            ["2", "math", "theoremQA-Math", "train", "False", "What is 2 + 2?", options, "B"],
            ["3", "physics", "stemez-Optics", "val", "False", "What is light?", options, "A"],
        ],
    )
    write(
        tmp_path / "matrices/mmlu_pro_correct.csv.gz",
        ["question_id", "Meta-Llama-3_1-70B-Instruct", "DeepSeek-Coder-V2", "Mixtral-8x7B-Instruct-v0.1"],
        [["1", "1", "1", "0"], ["2", "1", "0", "0"], ["3", "1", "", "1"]],
    )
    write(
        tmp_path / "pairs/routellm_mmlu.csv.gz",
        ["prompt", "strong_correct", "weak_correct", "split", "subject"],
        [
            ["Gold?\nA. a\nB. b\nAnswer:", "1", "0", "gold", "jurisprudence"],
            ["Weak wins?\nA. a\nB. b\nAnswer:", "0", "1", "gold", "moral_scenarios"],
            ["Dev?\nA. a\nB. b\nAnswer:", "1", "0", "dev", "jurisprudence"],
        ],
    )
    return tmp_path


def by_source(data):
    rows, _ = read_all(data)
    found = {}
    for row in rows:
        found.setdefault(row.source, []).append(row)
    return found


def test_a_question_comes_with_and_without_its_options(data):
    rows = by_source(data)
    assert rows["mmlu_pro"][0].text == "Is it binding?"
    assert rows["mmlu_pro_options"][0].text == "Is it binding?\nA. yes\nB. no"
    assert rows["mmlu_pro_options"][0].domain == DOMAINS.index("law")


def test_the_outcomes_of_an_mmlu_question_are_not_read_into_a_difficulty(data):
    stem, own, val = by_source(data)["mmlu_pro_options"]
    assert (stem.difficulty, stem.gain) == (None, None)
    # Strong right in one of two, weak wrong.
    assert (own.difficulty, own.gain) == (0.5, 0.5)
    assert (val.part, val.difficulty) == (Part.DEV, None)


def test_gold_rows_train_and_the_others_are_reported_on(data):
    gold = by_source(data)["routellm_mmlu"]
    assert [row.part is Part.DEV for row in gold] == [False, False, True]


def test_a_gold_row_carries_the_gain_with_its_sign(data):
    first, second, _ = by_source(data)["routellm_mmlu"]
    assert (first.difficulty, first.gain) == (1.0, 1.0)
    assert (second.difficulty, second.gain) == (0.0, -1.0)
    assert FAMILIES[first.family] == "exam"


def test_a_gold_rows_subject_gives_the_domain_it_is_filed_under(data):
    first, second, dev = by_source(data)["routellm_mmlu"]
    assert first.domain == DOMAINS.index("law")
    assert second.domain is None
    assert dev.domain is None


def test_the_test_questions_of_gsm8k_may_not_train(data):
    write(
        data / "pairs/routellm_gsm8k.csv.gz",
        ["prompt", "strong_correct", "weak_correct", "split"],
        [["How many?", "1", "0", "dev"]],
    )
    (row,) = by_source(data)["routellm_gsm8k"]
    assert not row.rights.may_train
    assert row.part is Part.DEV


def test_a_longer_word_problem_is_harder(data):
    write(
        data / "difficulty/gsm8k_train.csv.gz",
        ["question", "answer"],
        [["A much longer question?", "<<1>>"], ["Short?", "a <<1+1=2>> <<2>> <<3>>"]],
    )
    long, short = by_source(data)["gsm8k_train"]
    assert short.difficulty < long.difficulty < 0.5


def test_torn_rows_of_big_math_are_left_out(data):
    header = ["instruction", "response", "solve_rate", "difficulty_tier", "source", "domain"]
    file = data / "difficulty/big_math.csv.gz"
    write(
        file, header, [["Whole?", "1", "0.25", "easy", "x", "y"], ["torn"], ["No rate", "1", "", "", "", ""]]
    )
    (row,) = by_source(data)["big_math"]
    assert (row.text, row.difficulty) == ("Whole?", 0.75)
    assert row.place.endswith("big_math.csv.gz:2")


def test_out_of_scope_requests_are_never_training_rows(data):
    write(
        data / "intent/clinc150.csv.gz",
        ["split", "text", "intent", "domain"],
        [
            ["train", "pay it", "pay_bill", "banking"],
            ["oos_train", "sing", "oos", "oos"],
            ["test", "x", "y", "z"],
        ],
    )
    rows = by_source(data)["clinc150"]
    assert [row.text for row in rows] == ["pay it", "x"]
    assert rows[1].part is Part.DEV


def test_an_unknown_domain_is_refused_by_row_and_column(data):
    file = data / "matrices/mmlu_pro_questions.csv.gz"
    write(file, PRO_HEADER, [["1", "alchemy", "s", "train", "False", "Gold?", "[]", "A"]])
    with pytest.raises(DataError, match=r"mmlu_pro_questions\.csv\.gz:2:category: .*'alchemy'"):
        read_all(data)


def test_files_that_are_not_there_are_named(data):
    _, missing = read_all(data)
    assert "intent/clinc150.csv.gz" in missing
    assert "matrices/mmlu_pro_questions.csv.gz" not in missing


def test_no_source_without_an_open_licence_may_train():
    for source in SOURCES:
        if source.may_train:
            assert source.licence.split("-")[0] in ("MIT", "Apache", "CC", "CC0")
            assert "NC" not in source.licence


def test_handwritten_files_train_or_measure_by_their_name(tmp_path):
    (tmp_path / "a.train.jsonl").write_text(
        '{"text": "Why is the sky blue?", "domain": "physics", "hard": 0}\n'
        '{"text": "sum this up", "task": "summarisation"}\n'
    )
    (tmp_path / "b.eval.jsonl").write_text('{"text": "Prove it.", "hard": 1}\n')
    first, second, third = read_handwritten(tmp_path)
    assert (first.domain, first.difficulty, first.task) == (DOMAINS.index("physics"), 0.0, None)
    assert (second.task, second.difficulty) == (TASKS.index("summarisation"), None)
    assert third.part is Part.DEV
    assert not third.rights.may_train


def test_a_mislabelled_handwritten_row_is_refused_by_row_and_column(tmp_path):
    (tmp_path / "a.train.jsonl").write_text(
        '{"text": "x", "domain": "law"}\n{"text": "y", "domain": "Law"}\n'
    )
    with pytest.raises(DataError, match=r"a\.train\.jsonl:2:domain: expected one of .*'Law'"):
        read_handwritten(tmp_path)

"""`eval mixed`: what is classified, how kinds are compared, and the rows that are shipped for it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from semroute_lab.common.tables import read_table
from semroute_lab.evaluate.mixed import MixedRows, evaluate_mixed, read_mixed
from semroute_lab.evaluate.reports import markdown, plain

from semroute_extproc.errors import DataError

SHIPPED = Path(__file__).resolve().parents[3] / "datasets" / "mixed.jsonl"


def file_of(tmp_path: Path, *rows: dict) -> Path:
    """A file of the given rows and enough others of the kind `other`."""
    rest = [{"kind": "other", "text": f"text {i}"} for i in range(20)]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *rest)))
    return file


class Source:
    """Keeps the texts that it is asked to score."""

    texts: list[str]

    def score(self, texts: list[str]) -> Any:
        self.texts = texts
        return SimpleNamespace(difficulty=np.zeros(len(texts)), unknown=np.zeros(len(texts), dtype=bool))


def read(file: Path) -> tuple[list[str], MixedRows]:
    """The texts that are scored, and the rows."""
    source = Source()
    rows = read_mixed(read_table(file), source)
    return source.texts, rows


def rows_of(kinds: list[str], difficulty: np.ndarray, **given: Any) -> MixedRows:
    """Rows without languages, judgments and outcomes, of growing length, unless they are given."""
    n = len(kinds)
    others = {"languages": [""] * n, "characters": np.arange(n) + 1.0, "unknown": np.zeros(n, dtype=bool)}
    others |= {name: np.full(n, np.nan) for name in ("hard", "weak", "strong", "error")}
    return MixedRows(kinds=kinds, difficulty=difficulty, **(others | given))


def test_messages_are_read_as_the_server_reads_them(tmp_path: Path) -> None:
    """The user's words are classified, the system prompt is not; length is that of the classified text."""
    turns = [
        {"role": "system", "content": "You are a support agent."},
        {"role": "user", "content": [{"type": "text", "text": "Where is my order?"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "orders"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "shipped"},
    ]
    file = file_of(tmp_path, {"kind": "agent_step", "messages": turns})
    texts, rows = read(file)
    assert "Where is my order?" in texts[0]
    assert "support agent" not in texts[0]
    assert texts[1] == "text 0"
    assert rows.characters.tolist() == [len(text) for text in texts]


def test_messages_may_be_a_column_of_a_csv_file(tmp_path: Path) -> None:
    turns = json.dumps([{"role": "user", "content": "hello"}])
    with (tmp_path / "m.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["kind", "messages"], *[["chat", turns]] * 20])
    assert read(tmp_path / "m.csv")[0] == ["hello"] * 20


def test_a_blank_hard_is_read_from_the_outcomes(tmp_path: Path) -> None:
    outcomes = {"kind": "a", "text": "x", "weak": 0.4, "strong": 0.9}
    file = file_of(tmp_path, outcomes, outcomes | {"hard": 0}, outcomes | {"weak": 1})
    hard = read(file)[1].hard
    assert hard[:3].tolist() == [1, 0, 0]
    assert np.isnan(hard[3:]).all()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"kind": "a", "text": " "}, r"mixed.jsonl:1:text: .*no text"),
        (
            {"kind": "a", "messages": [{"role": "user", "content": 5}]},
            r"mixed.jsonl:1:messages: .*chat_completions",
        ),
        ({"kind": "", "text": "x"}, r"mixed.jsonl:1:kind: expected text"),
        ({"kind": "a", "text": "x", "hard": 2}, r"mixed.jsonl:1:hard: expected a number in 0..1"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(file_of(tmp_path, row))


def test_every_hard_kind_is_compared_with_every_easy_kind() -> None:
    """Contest problems outscore chat and are outscored by summaries; length says the contrary of both."""
    kinds = ["contest"] * 10 + ["chat"] * 10 + ["summary"] * 10
    difficulty = np.repeat([0.5, 0.1, 0.9], 10)
    rows = rows_of(kinds, difficulty, characters=np.repeat([20.0, 30.0, 10.0], 10))
    found = evaluate_mixed(rows, threshold=0.4, hard=["contest"], replicates=50, seed=1)
    areas = {row["easy"]: (row["ours"].value, row["length"].value) for row in found["pairs"]}
    assert areas == {"chat": (1.0, 0.0), "summary": (0.0, 1.0)}
    between = found["between"]
    assert (between["pairs"], between["ours"]["least"], between["ours"]["below_half"]) == (2, 0.0, 1)
    assert between["ours"]["mean"].value == between["ours"]["mean"].low == 0.5
    named = evaluate_mixed(rows, threshold=0.4, easy=["chat"])
    assert [(row["hard"], row["easy"]) for row in named["pairs"]] == [
        ("contest", "chat"),
        ("summary", "chat"),
    ]


def test_without_named_kinds_judged_rows_are_compared_and_small_sides_left_out() -> None:
    """Ten easy and ten hard rows of `code` are compared with each other; one hard row of `chat` is not."""
    hard = np.array([0.0] * 10 + [1.0] * 10 + [0.0] * 19 + [1.0])
    kinds = ["code"] * 20 + ["chat"] * 20
    found = evaluate_mixed(rows_of(kinds, hard, hard=hard), threshold=0.5)
    assert [(row["hard"], row["easy"], row["rows"]) for row in found["pairs"]] == [
        ("code", "chat", [10, 19]), ("code", "code", [10, 10]),
    ]  # fmt: skip
    unjudged = evaluate_mixed(rows_of(kinds, hard), threshold=0.5)
    assert (unjudged["pairs"], unjudged["between"]) == ([], None)


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        ({"hard": ["x"]}, "^x: expected kinds of the file"),
        ({"hard": ["a"], "easy": ["a"]}, "^a: .* each on one side; they are a"),
    ],
)
def test_a_kind_that_cannot_be_compared_is_refused(sides: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        evaluate_mixed(rows_of(["a"] * 20, np.zeros(20)), threshold=0.5, **sides)


def test_a_kind_has_its_score_shares_and_calibration() -> None:
    """Unknown text goes to the strong model whatever its difficulty."""
    kinds, difficulty = ["a"] * 10 + ["b"] * 10, np.repeat([0.25, 0.75], 10)
    unknown = np.arange(20) < 2
    hard = np.array([0.0] * 10 + [1.0] * 10)
    rows = rows_of(kinds, difficulty, unknown=unknown, hard=hard, languages=["en", ""] * 10)
    found = plain(evaluate_mixed(rows, threshold=0.5, replicates=100))
    a, b = found["kinds"]
    assert (a["name"], a["rows"], a["score"]["value"]) == ("a", 10, 0.25)
    assert (a["above"]["value"], a["unknown"]["value"]) == (0.0, 0.2)
    assert a["strong_share"]["value"] == 0.2
    assert a["strong_share"]["low"] < 0.2 < a["strong_share"]["high"]
    assert (a["hard"]["value"], a["ece"], b["hard"]["value"], b["ece"]) == (0.0, 0.25, 1.0, 0.25)
    assert found["total"]["strong_share"]["value"] == found["total"]["longest"]["value"] == 0.6
    assert (a["longest"]["value"], b["longest"]["value"]) == (0.2, 1.0)
    assert [row["name"] for row in found["languages"]] == ["", "en"]


def test_outcomes_give_apgr_and_pgr_at_the_fixed_and_at_the_following_threshold() -> None:
    """No row reaches the fixed threshold; the threshold that follows the rows finds all the gain."""
    gain = np.arange(40) >= 28
    rows = rows_of(
        ["a"] * 40,
        np.arange(40) / 100,
        weak=1.0 - gain,
        strong=np.ones(40),
        characters=np.arange(40.0)[::-1] + 1,
    )
    found = evaluate_mixed(rows, threshold=0.9, replicates=50)
    outcomes = found["outcomes"]
    assert found["total"]["gain"].value == pytest.approx(0.3)
    ours, _, length = outcomes["routers"]
    assert ours["apgr"].value == pytest.approx(0.85, abs=0.01)
    assert length["apgr"].value == pytest.approx(0.15, abs=0.01)
    table = {
        (row["name"], row["rule"]): (row["strong_share"].value, row["pgr"].value)
        for row in outcomes["routers"]
    }
    assert table == {
        ("ours", "fixed"): (0, 0),
        ("ours", "following"): (0.3, 1.0),
        ("length", "following"): (0.3, 0.0),
    }
    same = rows_of(["a"] * 40, np.arange(40) / 100, weak=np.ones(40), strong=np.ones(40))
    assert evaluate_mixed(same, threshold=0.9)["outcomes"] is None


def test_a_card_shows_kinds_languages_pairs_and_outcomes() -> None:
    kinds, gain = ["a"] * 20 + ["b"] * 20, np.arange(40) >= 20
    rows = rows_of(
        kinds, np.arange(40) / 40, weak=1.0 - gain, strong=np.ones(40), hard=gain * 1.0, languages=["en"] * 40
    )
    text = markdown(plain(evaluate_mixed(rows, threshold=0.5)))
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.strip().split("\n")}) == 1
    assert "| b | 20 | 30 | .738 | 1.00 | .00 | 1.000 | 1.00 | 1.00 | 1.000 |" in text
    assert "| b | a | 20 / 20 | 1.000 | 1.000 |" in text
    assert "| ours, fixed threshold |" in text


def test_the_shipped_rows_have_every_kind_and_many_languages() -> None:
    table = read_table(SHIPPED)
    texts, rows = read(SHIPPED)
    assert len(set(texts)) == len(texts) > 300
    assert min(Counter(rows.kinds).values()) >= 12
    languages = Counter(rows.languages)
    assert languages.pop("en") > 200
    assert set(languages.values()) == {10}
    assert set(rows.hard) == {0.0, 1.0}
    assert sum(bool(field) for field in table.columns["messages"]) > 20


def test_length_alone_does_not_order_the_shipped_rows() -> None:
    """A router by the length of the whole request is better than chance on them, and far from useful."""
    _, rows = read(SHIPPED)
    table = read_table(SHIPPED)
    written = zip(table.columns["text"], table.columns["messages"], strict=True)
    whole = [text or "".join(turn["content"] or "" for turn in json.loads(turns)) for text, turns in written]
    characters = np.array([float(len(each)) for each in whole])
    rows = replace(rows, difficulty=rows.hard, characters=characters)
    found = evaluate_mixed(rows, threshold=0.5)["between"]
    assert found["ours"]["mean"].value == 1.0
    assert 0.5 < found["length"]["mean"].value < 0.75


def test_outcomes_of_a_matrix_are_joined_by_its_key_and_ordered_by_the_mean_error(tmp_path: Path) -> None:
    rows = [{"kind": "exam", "id": f"q{i}", "text": "x" * (i + 1)} for i in range(60)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    matrix = tmp_path / "outcomes.csv"
    with matrix.open("w", newline="") as out:
        lines = csv.writer(out)
        lines.writerow(["id", "small", "large", "other"])
        lines.writerows([f"q{i}", int(i < 20), int(i < 40), int(i < 50)] for i in reversed(range(60)))
    columns = {"weak": "small", "strong": "large"}
    found = read_mixed(read_table(questions), Source(), columns=columns, matrix=read_table(matrix))
    assert (found.strong.sum(), found.weak.sum()) == (40, 20)
    assert found.error[[0, 30, 55]].tolist() == pytest.approx([0.0, 1 / 3, 1.0])
    found = replace(found, difficulty=found.characters)
    spearman = evaluate_mixed(found, threshold=0.5, replicates=50)["outcomes"]["spearman"]
    assert spearman.low < spearman.value <= spearman.high <= 1.0
    assert spearman.value > 0.9
    columns = {"weak": "tiny", "strong": "large"}
    with pytest.raises(
        DataError, match=r"outcomes\.csv:.*tiny: expected one of the models small, large, other"
    ):
        read_mixed(read_table(questions), Source(), columns=columns, matrix=read_table(matrix))


def test_a_language_has_its_auroc() -> None:
    hard = np.array([0.0, 1.0] * 20)
    rows = rows_of(["chat"] * 40, hard, hard=hard, languages=["de"] * 40)
    found = evaluate_mixed(rows, threshold=0.5, replicates=20)
    assert found["languages"][0]["auroc"].value == 1.0
    assert "AUROC" in markdown(plain(found | {"kind": "mixed"}))

"""Augmentation: what surrounds a question changes, what the question needs does not."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from semroute_lab.train import augment
from semroute_lab.train.augment import SHARES, Augment, typing_errors
from semroute_lab.train.datasets import LEVELS, Example, Part, Rights

QUESTION = 'Prove that "0.999..." equals\n\\frac{1}{1} for Everyone.'
ROW = Example(
    QUESTION,
    "s",
    "s.csv:2",
    Rights("MIT", True),
    Part.FIT,
    domain=9,
    task=1,
    difficulty=0.7,
    kind="math",
    intent="s/proof",
    weight=0.5,
)
PASSAGES = ["The passage of another row.\nIt has two lines.", "A long passage. " * 400]
DRAWS = 4_000
DECLARED = tomllib.loads(Path(augment.__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TEMPLATES = [*DECLARED["envelopes"], *DECLARED["chores"]]


def drawn(count: int = DRAWS, row: Example = ROW) -> list[Example]:
    change = Augment(PASSAGES, random.Random(1))
    return [change(row) for _ in range(count)]


@pytest.fixture(scope="module")
def changed() -> dict[str, list[Example]]:
    """Many draws for one row, by what was done to it."""
    found: dict[str, list[Example]] = {"chore": [], "envelope": [], "change": [], "none": []}
    for row in drawn():
        if row.kind == "housekeeping":
            found["chore"].append(row)
        elif row.intent is None:
            found["envelope"].append(row)
        else:
            found["none" if row is ROW else "change"].append(row)
    return found


def test_rows_are_changed_in_the_declared_shares(changed: dict[str, list[Example]]) -> None:
    for name, share in SHARES.items():
        assert len(changed[name]) / DRAWS == pytest.approx(share, abs=0.02), name
    assert len(changed["none"]) / DRAWS == pytest.approx(1 - sum(SHARES.values()), abs=0.02)


def test_a_changed_row_keeps_its_labels_its_place_and_its_rights(changed: dict[str, list[Example]]) -> None:
    for row in changed["change"]:
        assert row == replace(ROW, text=row.text)
    for row in changed["envelope"]:
        assert row == replace(ROW, text=row.text, intent=None)


def test_a_chore_becomes_housekeeping(changed: dict[str, list[Example]]) -> None:
    level = LEVELS["housekeeping"]
    for row in changed["chore"]:
        nothing = {"domain": None, "task": None, "intent": None, "gain": None}
        expected = replace(ROW, text=row.text, difficulty=level, kind="housekeeping", **nothing)
        assert row == expected


def test_the_question_is_in_every_envelope_and_chore(changed: dict[str, list[Example]]) -> None:
    escaped = json.dumps(QUESTION)[1:-1]
    for row in [*changed["envelope"], *changed["chore"]]:
        assert QUESTION in row.text or escaped in row.text
        assert not any(f"{{{name}}}" in row.text for name in ("question", "passage", "other", "short"))


def test_an_envelope_of_json_is_json(changed: dict[str, list[Example]]) -> None:
    found = [json.loads(row.text) for row in changed["envelope"] if row.text.startswith('{"')]
    assert found
    for one in found:
        assert QUESTION in (one.get("question"), one.get("input", {}).get("text"))


def test_every_envelope_and_chore_is_drawn(changed: dict[str, list[Example]]) -> None:
    # The start of a template up to its first field; those that start with a field share it.
    starts = {template.partition("{")[0] for template in TEMPLATES} - {""}
    texts = [row.text for row in [*changed["envelope"], *changed["chore"]]]
    assert [start for start in starts if not any(text.startswith(start) for text in texts)] == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_asks_the_question_of_its_row(template: str) -> None:
    assert template.count("{question}") == 1


def test_a_field_in_a_question_is_not_filled() -> None:
    row = replace(ROW, text="What does {passage} mean in a template?")
    assert all("{passage}" in one.text for one in drawn(200, row) if one.intent is None)


def test_passages_are_cut() -> None:
    longest = max(len(row.text) for row in drawn())
    assert max(augment.PASSAGES) < longest < len(QUESTION) + max(augment.PASSAGES) + augment.OTHER + 400


def test_changes_of_the_text_are_of_every_kind(changed: dict[str, list[Example]]) -> None:
    def kind(text: str) -> str:
        if text == QUESTION.lower():
            return "lower"
        if text == QUESTION.upper():
            return "upper"
        if text == QUESTION.rstrip("."):
            return "no mark"
        if text == " ".join(QUESTION.split()):
            return "one line"
        before, found, after = text.partition(QUESTION)
        phrases = " and ".join(["before"] * bool(before) + ["after"] * bool(after))
        # Of few words none may get a typing error.
        return phrases if found and phrases else "typing errors"

    counts = Counter(kind(row.text) for row in changed["change"])
    known = {"lower", "upper", "no mark", "one line", "typing errors"}
    assert set(counts) == known | {"before", "after", "before and after"}


def test_the_same_seed_gives_the_same_changes() -> None:
    assert drawn(100) == drawn(100)


def test_typing_errors_change_letters_of_longer_words_only() -> None:
    text = " ".join(["the cat sat", "understanding", "computers"] * 100)
    words = typing_errors(text, random.Random(0)).split(" ")
    pairs = list(zip(text.split(" "), words, strict=True))
    wrong = [(before, after) for before, after in pairs if before != after]
    assert 0 < len(wrong) / 200 < 2 * augment.TYPO_SHARE
    assert all(len(before) > augment.TYPO_LETTERS for before, _ in wrong)
    # A letter is dropped, doubled, or swapped with the next one.
    assert {len(after) - len(before) for before, after in wrong} == {-1, 0, 1}

"""Perturbations: seeded, bounded in what they change, and doing what their name says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from semroute_lab.evaluate import robustness as perturbations
from semroute_lab.evaluate.robustness import PERTURBATIONS, perturb

from semroute_extproc.cli.score import text_of_body
from semroute_extproc.request.text import is_written

MULTIPLE_CHOICE = "What is the boiling point of water?\nA. 90 °C\nB. 100 °C\nC. 110 °C\nAnswer:"


@pytest.mark.parametrize("one", PERTURBATIONS, ids=lambda one: one.name)
def test_the_same_seed_changes_texts_the_same_way_wherever_it_runs(one: perturbations.Perturbation) -> None:
    texts = [MULTIPLE_CHOICE, "Summarise the following paragraph for a general audience, please.", "Hi"]
    assert perturb(one, texts, seed=7) == perturb(one, texts, seed=7)


@given(st.text(max_size=200).filter(is_written))
def test_every_perturbation_of_any_text_is_a_request_with_text(text: str) -> None:
    for one in PERTURBATIONS:
        assert text_of_body(one.request(text, random.Random(0)))


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    else:
        for item in value.values() if isinstance(value, dict) else value or ():
            yield from strings(item)


ENVELOPES = [one for one in PERTURBATIONS if one.group in ("envelope", "housekeeping")]


@pytest.mark.parametrize("one", ENVELOPES, ids=lambda one: one.name)
def test_an_envelope_has_the_whole_prompt_once(one: perturbations.Perturbation) -> None:
    """Quotation marks, line breaks and braces do not break out of it."""
    prompt = 'He said: "{prompt}\n\\frac{1}{2}"'
    inside = json.dumps(prompt)[1:-1] if one.name == "JSON" else prompt
    whole = "\n".join(strings(one.request(prompt, random.Random(0))))
    assert whole.count(inside) == 1
    assert len(whole) > len(inside) + 20


def test_a_json_envelope_is_json() -> None:
    (one,) = (one for one in ENVELOPES if one.name == "JSON")
    body = one.request('a "quoted" word', random.Random(0))
    assert json.loads(body["messages"][0]["content"])["message"] == 'a "quoted" word'
    assert text_of_body(body) == 'a "quoted" word'


def test_names_are_told_apart_and_every_function_has_its_perturbation() -> None:
    names = [one.name for one in PERTURBATIONS]
    assert len(set(names)) == len(names)
    assert set(perturbations._FUNCTIONS) <= set(names)


@pytest.mark.parametrize(
    "one",
    [one for one in PERTURBATIONS if one.group in ("appended", "easy", "hard")],
    ids=lambda one: one.name,
)
def test_appended_text_and_attacks_keep_the_whole_prompt(one: perturbations.Perturbation) -> None:
    changed = one.apply(MULTIPLE_CHOICE, random.Random(1))
    assert MULTIPLE_CHOICE in changed
    assert len(changed) > len(MULTIPLE_CHOICE)


def test_typos_change_about_a_tenth_of_the_longer_words_and_never_a_short_one() -> None:
    text = " ".join(["window", "the", "a"] * 2000)
    changed = perturbations.typos(text, random.Random(3)).split(" ")
    assert len(changed) == 6000
    assert set(changed[1::3]) == {"the"}
    mistyped = sum(word != "window" for word in changed[0::3])
    # Doubling or swapping equal letters does not show; "window" has none, so all typos do.
    assert 0.08 < mistyped / 2000 < 0.12


def test_typos_keep_first_letters_and_change_the_length_by_one_at_most() -> None:
    for seed in range(200):
        word = perturbations.typos("neighbour", random.Random(seed))
        assert word[0] == "n"
        assert abs(len(word) - 9) <= 1


def test_options_are_reordered_under_their_letters_and_the_question_stays() -> None:
    changed = perturbations.reorder(MULTIPLE_CHOICE, random.Random(0))
    lines, before = changed.split("\n"), MULTIPLE_CHOICE.split("\n")
    assert changed != MULTIPLE_CHOICE
    assert (lines[0], lines[-1]) == (before[0], before[-1])
    assert [line[:3] for line in lines[1:4]] == ["A. ", "B. ", "C. "]
    assert {line[3:] for line in lines[1:4]} == {"90 °C", "100 °C", "110 °C"}


def test_identical_options_do_not_hang_the_reordering() -> None:
    assert perturbations.reorder("Pick\nA. x\nB. x", random.Random(0)) == "Pick\nA. x\nB. x"


def test_without_options_the_last_sentence_comes_first() -> None:
    assert perturbations.reorder("He ran. She saw. Why?", random.Random(0)) == "Why? He ran. She saw."


def test_contractions_go_one_way_or_the_other_and_keep_capitals() -> None:
    assert perturbations.contract("What is it? I cannot say.", random.Random(0)) == "What's it? I can't say."
    assert perturbations.contract("What's it?", random.Random(0)) == "What is it?"


def test_punctuation_inside_numbers_stays() -> None:
    assert perturbations.unpunctuated("It is 3.5, right?", random.Random(0)) == "It is 3.5 right"
    assert perturbations.unpunctuated("?!", random.Random(0)) == "?!"

"""What a client's model name means, and which aliases are ambiguous."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from builders import config, names
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from semroute_extproc.settings.names import MATCHED_CHARACTERS_MAX, Card, Named, ambiguous


def settings(auto: Any = (), fast: Any = (), small: Any = (), large: Any = ()) -> Any:
    pools = {
        "small": {
            "cluster": "s",
            "model": "org/small",
            "context": 8_000,
            "aliases": small,
            "owned_by": "org",
        },
        "large": {"cluster": "l", "model": "big", "context": 32_000, "aliases": large},
    }
    models = {"auto": {"policy": "main", "aliases": auto}, "fast": {"policy": "one", "aliases": fast}}
    policies = {"main": {"otherwise": {"strategy": "s"}}, "one": {"otherwise": {"pool": "small"}}}
    return config(pools=pools, models=models, policies=policies)


AUTO, FAST, SMALL, LARGE = Named(model="auto"), Named(model="fast"), Named(pool="small"), Named(pool="large")


@pytest.mark.parametrize(
    ("asked", "meaning"),
    [
        ("auto", AUTO),
        ("Auto", AUTO),
        ("openai/auto", AUTO),
        ("ORG/Small", SMALL),
        ("gpt-4o-mini", SMALL),
        ("GPT-4o-Mini", SMALL),
        ("claude-haiku-4-5", FAST),
        ("claude-opus-5", LARGE),
        ("anthropic/Claude-Opus-5", LARGE),
        ("autos", None),
        ("", None),
        ("claude", None),
        ("claude-" + "x" * MATCHED_CHARACTERS_MAX, None),
    ],
)
def test_an_exact_name_wins_then_another_case_then_the_longest_pattern(asked: str, meaning: Named | None):
    found = names(settings("openai/auto", "claude-haiku-*", "gpt-4o-mini", ["claude-*", "*/claude-opus-*"]))
    assert found.find(asked) == meaning


def test_an_exact_name_wins_over_another_in_a_different_case():
    pools = {name: {"cluster": "c", "model": name} for name in ("Qwen", "qwen")}
    found = names(config(pools=pools, default_pool="Qwen", models={}, policies={}, strategies={}))
    assert (found.find("Qwen"), found.find("qwen")) == (Named(pool="Qwen"), Named(pool="qwen"))


def test_a_star_takes_every_name_that_nothing_else_takes():
    found = names(settings(auto="*", small="gpt-*"))
    assert (found.find("anything"), found.find("gpt-5"), found.find("big")) == (AUTO, SMALL, LARGE)
    assert found.find("") is None, "a request without a model has no name"


def test_the_cards_have_the_owner_and_the_largest_context_of_the_pools_that_may_answer():
    assert names(settings()).cards == [
        Card("auto", "semroute", 32_000),
        Card("fast", "semroute", 8_000),
        Card("big", "vllm", 32_000),
        Card("org/small", "org", 8_000),
    ]


@pytest.mark.parametrize(
    ("given_aliases", "message"),
    [
        ({"auto": "big"}, "'big' is already a name of pool large"),
        ({"auto": "Org/Small"}, "already a name of pool small"),
        ({"small": "AUTO"}, "already a name of auto"),
        ({"auto": "x", "fast": "X"}, "already a name of auto"),
        ({"auto": "gpt-*", "small": "GPT-*"}, "already a name of auto"),
        ({"auto": "gpt-*", "small": "*-4o-*"}, "'*-4o-*' and 'gpt-*' of auto match the same names"),
        ({"auto": "a*c", "fast": "*bc"}, "match the same names"),
    ],
)
def test_an_ambiguous_alias_is_a_problem_with_its_place(given_aliases: dict[str, str], message: str):
    changed = settings(**given_aliases)
    [problem] = ambiguous(changed.models, changed.pools)
    assert message in problem.message
    assert problem.path[2:] == ("aliases", 0)


@pytest.mark.parametrize(
    "given_aliases",
    [
        {"auto": ["gpt-*", "*-4o*"]},
        {"auto": "gpt-*", "small": "gpt-4*"},
        {"auto": "gpt-*", "small": "abc-*"},
        {"auto": "*", "small": "x*"},
        {"auto": "x", "small": "x*"},
    ],
)
def test_patterns_of_one_owner_or_of_different_length_are_not_ambiguous(given_aliases: dict[str, Any]):
    changed = settings(**given_aliases)
    assert list(ambiguous(changed.models, changed.pools)) == []


@pytest.mark.parametrize("alias", ["", "a b", "a\n", "a*b*c*d", "é", "x" * 129])
def test_an_alias_is_a_name_with_at_most_two_stars(alias: str):
    with pytest.raises(ValidationError):
        settings(auto=[alias])


def test_a_pattern_needs_little_time_for_any_name():
    found = names(settings(auto="*a*a"))
    started = time.process_time()
    assert found.find("a" * MATCHED_CHARACTERS_MAX + "b") is None
    assert found.find("a" * 1_000_000) is None
    assert time.process_time() - started < 0.1


@given(st.text("ab", max_size=4), st.text("ab*", max_size=4), st.text("ab*", max_size=4))
def test_two_patterns_that_both_match_a_name_and_are_equally_long_are_refused(name: str, one: str, two: str):
    if not one or not two or one.count("*") > 2 or two.count("*") > 2 or "*" not in one or "*" not in two:
        return
    changed = settings(auto=one, small=two)
    found = [names(settings(auto=one)).find(name), names(settings(small=two)).find(name)]
    longer = len(one.replace("*", "")) != len(two.replace("*", ""))
    if all(found) and not longer:
        assert list(ambiguous(changed.models, changed.pools))


@given(st.text("aAb", max_size=6), st.text("aB*", min_size=1, max_size=5))
def test_a_pattern_matches_what_its_regular_expression_would(name: str, pattern: str):
    if pattern.count("*") > 2 or not name:
        return
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name, re.IGNORECASE | re.DOTALL)
    assert bool(names(settings(auto=pattern)).find(name)) == bool(expected)

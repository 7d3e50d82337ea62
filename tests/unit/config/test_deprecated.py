"""Settings of the previous release: read as their new spelling, with a note that has its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from semroute_extproc.config import source as config_source
from semroute_extproc.config.source import Loaded
from semroute_extproc.errors import ConfigError

HEAD = """\
pools:
  small: {cluster: vllm-small, model: org/small}
  large: {cluster: vllm-large, model: org/large}
default_pool: large
"""
PAIR = "  pair: {kind: threshold, weak: small, strong: large, strong_share: 0.3}\n"
OTHER = "  other: {kind: threshold, weak: small, strong: large, threshold: 0.5}\n"


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Loaded:
    file = tmp_path / "semroute.yaml"
    file.write_text(HEAD + text)
    return config_source.load(file, environment or {})


def refused(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environment)
    return caught.value.problems


@pytest.mark.parametrize(
    ("old", "new", "name", "place"),
    [
        ("encoder: {lanes: 2}\n", "encoder: {threads: 2}\n", "threads", "5:11: encoder.lanes"),
        (
            f"strategies:\n{PAIR.replace('}', ', unsure: small}')}",
            f"strategies:\n{PAIR.replace('}', ', on_unknown: small}')}",
            "on_unknown",
            "6:74: strategies.pair.unsure",
        ),
        (
            f"strategies:\n{PAIR.replace('threshold', 'similarity').replace('}', ', artefact: a.npz}')}",
            f"strategies:\n{PAIR.replace('threshold', 'similarity').replace('}', ', artifact: a.npz}')}",
            "artifact",
            "6:75: strategies.pair.artefact",
        ),
        (
            f"strategies:\n{PAIR}controllers: {{budgets: {{pair: {{strong_share: 0.3, leaning_max: 3}}}}}}\n",
            f"strategies:\n{PAIR}controllers: {{budgets: {{pair: {{strong_share: 0.3, bias_max: 3}}}}}}\n",
            "bias_max",
            "7:51: controllers.budgets.pair.leaning_max",
        ),
    ],
)
def test_an_old_name_is_the_new_one_and_says_so(
    tmp_path: Path, old: str, new: str, name: str, place: str
) -> None:
    before, after = load(tmp_path, old), load(tmp_path, new)
    assert before.config == after.config
    assert before.sha256 == after.sha256
    file = tmp_path / "semroute.yaml"
    assert before.notes == [f"{file}:{place}: is now called {name}; the next release will not read it"]
    assert after.notes == []


def test_an_old_name_in_the_environment_names_its_variable(tmp_path: Path) -> None:
    loaded = load(tmp_path, "", {"SEMROUTE__ENCODER__LANES": "3"})
    assert loaded.config.encoder.threads == 3
    assert loaded.notes == [
        "SEMROUTE__ENCODER__LANES (environment): encoder.lanes: is now called threads; "
        "the next release will not read it"
    ]
    [problem] = refused(tmp_path, "", {"SEMROUTE__ENCODER__LANES": "0"})
    assert problem.startswith(
        "SEMROUTE__ENCODER__LANES (environment): encoder.lanes: input should be greater"
    )


@pytest.mark.parametrize("environment", [{}, {"SEMROUTE__ENCODER__THREADS": "2"}])
def test_an_old_name_next_to_its_new_one_is_an_error_with_its_place(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    text = "encoder: {lanes: 2}\n" if environment else "encoder: {threads: 2, lanes: 2}\n"
    [problem] = refused(tmp_path, text, environment)
    assert (
        f"semroute.yaml:5:{11 if environment else 23}: encoder.lanes: is the old name of threads" in problem
    )


def test_an_error_about_an_old_name_shows_it_as_it_was_written(tmp_path: Path) -> None:
    [problem] = refused(tmp_path, f"strategies:\n{PAIR.replace('}', ', unsure: smal}')}")
    head, line, caret = problem.splitlines()
    assert head.endswith("strategies.pair.unsure: there is no pool 'smal' (did you mean 'small'?)")
    assert line[caret.index("^") :].startswith("unsure")


def test_a_fixed_strategy_is_a_pool_in_the_target(tmp_path: Path) -> None:
    old = """\
models: {auto: {policy: main}}
policies:
  main:
    rules: [{name: r, when: 'true', strategy: always}]
    otherwise: {strategy: always, reasoning: low}
strategies:
  always: {kind: fixed, pool: small}
controllers: {session: {strategies: [always, pair]}}
"""
    new = """\
models: {auto: {policy: main}}
policies:
  main:
    rules: [{name: r, when: 'true', pool: small}]
    otherwise: {pool: small, reasoning: low}
strategies:
"""
    before = load(tmp_path, old.replace("  always:", PAIR + "  always:"))
    after = load(tmp_path, new + PAIR + "controllers: {session: {strategies: [pair]}}\n")
    assert before.config == after.config
    [note] = before.notes
    assert (
        "semroute.yaml:12:3: strategies.always: is `kind: fixed`: write `pool: small` in the target" in note
    )
    problems = refused(tmp_path, old.replace("pool: small}", "pool: smal}").replace(", pair]", "]"))
    assert "semroute.yaml:8:37: policies.main.rules.0.strategy: there is no pool 'smal'" in problems[0]


CANARY = f"""\
models:
  auto: {{policy: main}}
  tried: {{policy: plain, canary: {{main: 0.5}}}}
  half: {{policy: main, canary: {{plain: 0.5}}}}
policies:
  main:
    rules: [{{name: r, when: 'true', strategy: drawn}}]
    otherwise: {{strategy: drawn}}
    shadow: plain
  plain: {{otherwise: {{pool: small}}}}
strategies:
{PAIR}{OTHER}  drawn: {{kind: weighted, strategies: {{pair: 3, other: 1}}}}
controllers: {{session: {{strategies: [drawn]}}}}
"""


def test_a_canary_of_strategies_is_a_canary_of_policies(tmp_path: Path) -> None:
    new = f"""\
models:
  auto: {{policy: main, canary: {{"main:drawn:other": 0.25}}}}
  tried: {{policy: plain, canary: {{main: 0.375, "main:drawn:other": 0.125}}}}
  half: {{policy: main, canary: {{plain: 0.5, "main:drawn:other": 0.125}}}}
policies:
  main:
    rules: [{{name: r, when: 'true', strategy: pair}}]
    otherwise: {{strategy: pair}}
    shadow: plain
  plain: {{otherwise: {{pool: small}}}}
  main:drawn:other:
    rules: [{{name: r, when: 'true', strategy: other}}]
    otherwise: {{strategy: other}}
    shadow: plain
strategies:
{PAIR}{OTHER}controllers: {{session: {{strategies: [pair, other]}}}}
"""
    before, after = load(tmp_path, CANARY), load(tmp_path, new)
    assert before.config == after.config
    [note] = before.notes
    assert (
        "semroute.yaml:18:3: strategies.drawn: is a canary of strategies: write one policy for each" in note
    )


def test_two_canaries_in_one_policy_draw_independently(tmp_path: Path) -> None:
    text = CANARY.replace("otherwise: {strategy: drawn}", "otherwise: {strategy: again}")
    text = text.replace("  drawn:", "  again: {kind: weighted, strategies: {pair: 1, other: 1}}\n  drawn:")
    config = load(tmp_path, text).config
    targets = {
        name: (policy.rules[0].strategy, policy.otherwise.strategy)
        for name, policy in config.policies.items()
        if policy.rules
    }
    shares = {"main": 1 - sum(config.models["auto"].canary.values()), **config.models["auto"].canary}
    assert {targets[name]: share for name, share in shares.items()} == pytest.approx(
        {
            ("pair", "pair"): 0.375,
            ("pair", "other"): 0.375,
            ("other", "pair"): 0.125,
            ("other", "other"): 0.125,
        }
    )


def test_a_canary_may_draw_a_fixed_strategy(tmp_path: Path) -> None:
    text = CANARY.replace(OTHER, "  other: {kind: fixed, pool: small}\n")
    loaded = load(tmp_path, text)
    assert loaded.config.policies["main:drawn:other"].otherwise.pool == "small"
    assert len(loaded.notes) == 2


def test_a_strategy_that_a_canary_draws_and_that_is_not_there_is_shown_at_the_target(tmp_path: Path) -> None:
    problems = refused(tmp_path, CANARY.replace("other: 1", "othr: 1"))
    assert any(
        "semroute.yaml:12:17: policies.main.otherwise.strategy: there is no strategy 'othr'" in problem
        for problem in problems
    )


@pytest.mark.parametrize(
    "text",
    [
        "strategies: {s: {kind: weighted, strategies: [a]}}\n",
        "strategies: {s: {kind: weighted, strategies: {a: x}}}\n",
        "strategies: {s: {kind: weighted, strategies: {a: 0}}}\n",
        "strategies: {s: {kind: weighted, strategies: {a: 1}, weights: {small: 1}}}\n",
        "strategies: {s: {kind: fixed}}\n",
        "strategies: [a]\n",
        "encoder: [a]\npolicies: {p: 3}\nstrategies: {s: 3}\n",
        "models: {m: 3, n: {policy: p, canary: {q: x}}}\npolicies: {p: {rules: 3, "
        "otherwise: {strategy: s}}}\nstrategies: {s: {kind: weighted, strategies: {a: 1, b: 1}}}\n",
    ],
)
def test_what_makes_no_sense_is_left_to_the_checks(tmp_path: Path, text: str) -> None:
    problems = refused(tmp_path, text)
    assert all("semroute.yaml:" in problem for problem in problems)
    assert not any("strategies: unknown setting (did you mean 'strategies'?)" in each for each in problems)

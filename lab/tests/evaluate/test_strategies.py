"""Strategies as routers: each row decides as the live path does."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_lab.evaluate import strategies
from semroute_lab.evaluate.scoring import Scores
from semroute_lab.evaluate.strategies import Labeled, domain_errors, judge_scores

from semroute_extproc.encoder.signals import Signals, entropy
from semroute_extproc.policy.context import Candidates, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.state.live import threshold_for_share
from semroute_extproc.strategies.intent import Intent, IntentSettings

LABELS = ("law", "math", "physics")


def known(domain: list[list[float]], unknown: list[bool] | None = None) -> Scores:
    """What a bundle says of texts of which only the domain matters."""
    n = len(domain)
    vectors = np.tile(np.eye(1, 4, dtype=np.float32), (n, 1))
    return Scores(
        LABELS,
        np.asarray(domain),
        np.full(n, 0.5),
        np.ones(n),
        vectors,
        vectors,
        np.asarray(unknown or [False] * n),
    )


LAW, MATH, PHYSICS, UNSURE = [0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9], [0.4, 0.3, 0.3]


def test_a_domains_error_is_shrunk_to_each_models_own_mean() -> None:
    fit = known([LAW] * 20 + [MATH] * 20)
    errors = np.asarray([[1.0, 0.0]] * 20 + [[0.0, 0.0]] * 20)
    found = domain_errors(fit, errors, known([LAW, MATH, PHYSICS]))
    assert found.tolist() == [
        [pytest.approx(0.75), 0.0],
        [pytest.approx(0.25), 0.0],
        [pytest.approx(0.5), 0.0],
    ]


def test_nothing_is_expected_of_a_domain_where_intent_abstains_and_such_rows_teach_nothing() -> None:
    fit = known([LAW] * 20 + [UNSURE] * 20)
    errors = np.asarray([[0.0]] * 20 + [[1.0]] * 20)
    found = domain_errors(fit, errors, known([LAW, UNSURE, LAW], [False, False, True]))
    assert found[0, 0] == pytest.approx(0.25)
    assert np.isnan(found[1:]).all()


def test_the_order_of_intent_on_a_pair_is_what_the_live_strategy_does_at_every_cut() -> None:
    """Of the domains those above a cut have the strong pool, and the generalist is the strong pool."""
    rng = np.random.default_rng(0)
    texts = rng.dirichlet([0.3, 0.3, 0.3], 300).tolist()
    strange = (rng.random(300) < 0.1).tolist()
    fit = Labeled(
        known(texts), np.stack([np.ones(300), rng.random(300)], axis=1), [str(i) for i in range(300)]
    )
    scored = known(texts, strange)
    found = strategies.scores(fit, scored, seed=0)["intent"]
    gains = dict(zip(LABELS, domain_gains(fit), strict=True))
    for cut in sorted(gains.values()):
        experts = {label: "large" if gain >= cut else "small" for label, gain in gains.items()}
        settings = {"kind": "intent", "experts": experts, "otherwise": "small", "on_unknown": "large"}
        live = Intent(IntentSettings.model_validate(settings))
        pools = [
            live.choose(facts(p, odd), Candidates({})).pool for p, odd in zip(texts, strange, strict=True)
        ]
        assert pools == ["large" if score >= cut else "small" for score in found.tolist()]


def domain_gains(fit: Labeled) -> list[float]:
    strong, weak = domain_errors(fit.known, 1.0 - fit.outcome, known([LAW, MATH, PHYSICS])).T
    return (weak - strong).tolist()


def facts(p: list[float], unknown: bool) -> RoutingContext:
    signals = Signals(
        domain=LABELS[int(np.argmax(p))],
        domain_probs=dict(zip(LABELS, p, strict=True)),
        domain_entropy=entropy(p),
        difficulty=0.5,
        unknown=unknown,
        tokens=9,
        truncated=False,
        language="en",
    )
    view = RequestView(Api.CHAT_COMPLETIONS, "auto")
    return RoutingContext(RequestHead("POST", "/"), view, "en", 9, signals=signals)


def test_without_a_judges_score_a_text_is_strong_at_the_shares_at_which_its_difficulty_is() -> None:
    reference = tuple((n / 100) ** 2 for n in range(101))
    said = {str(n): n / 200 for n in range(101)} | {"lost": None}
    texts = list(said)
    found = judge_scores(said, texts, np.full(len(texts), 0.36), reference)
    assert found[:-1].tolist() == [n / 200 for n in range(101)]
    quantiles = [n / 200 for n in range(101)]
    for share in (0.3, 0.39, 0.41, 0.8):
        by_difficulty = threshold_for_share(reference, share) <= 0.36
        assert (found[-1] >= threshold_for_share(quantiles, share)) == by_difficulty


@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_a_difficulty_beyond_the_reference_is_at_the_end_of_the_judges_scores(difficulty: float) -> None:
    found = judge_scores(
        {"a": 0.2, "b": 0.8, "c": None}, ["a", "b", "c"], np.full(3, difficulty), (0.4,) * 50 + (0.6,) * 51
    )
    assert found[2] == (0.2 if difficulty == 0.0 else 0.8)


def test_where_intent_always_abstains_no_text_comes_before_another() -> None:
    fit = Labeled(known([UNSURE] * 20), np.tile([1.0, 0.0], (20, 1)), ["x"] * 20)
    assert len(set(strategies.intent_scores(fit, known([UNSURE] * 3)).tolist())) == 1

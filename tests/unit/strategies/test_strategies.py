"""Strategies with an artifact: hand-computed scores and choices, and what makes an artifact unfit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from builders import MANIFEST, POOLS, build_policies, config, decided, plans

from semroute_extproc.config.models import Config
from semroute_extproc.encoder.signals import Signals
from semroute_extproc.policy.context import Conditions, Held, RoutingContext
from semroute_extproc.request.view import Api, RequestHead, RequestView
from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.calibration import Calibration
from semroute_extproc.strategies.clusters import ClustersArtifact, cluster_errors, cluster_tokens, trade_off
from semroute_extproc.strategies.factorization import FactorizationArtifact
from semroute_extproc.strategies.profiles import Profile
from semroute_extproc.strategies.registry import Files
from semroute_extproc.strategies.similarity import SimilarityArtifact

D = 4
QUANTILES = tuple(n / 100 for n in range(101))
PRICES = {"small": (0.1, 0.2), "large": (1.0, 2.0), "eyes": (0.5, 1.0)}
PRICED = {
    name: {**POOLS[name], "tools": True, "context": 100_000, "price": {"input": i, "output": o}}
    for name, (i, o) in PRICES.items()
}


def manifest(kind: Any, **changes: Any) -> ArtifactManifest:
    values = {"bundle": "test", "revision": MANIFEST.revision, "dimensions": D, "rows": 3}
    return ArtifactManifest.model_validate({"kind": kind, **values, **changes})


def unit(*values: float) -> np.ndarray:
    x = np.asarray(values, dtype=np.float32)
    return x / np.linalg.norm(x)


def signals(x: np.ndarray, **changes: Any) -> Signals:
    values: dict[str, Any] = {
        "domain": "math",
        "domain_probs": {"math": 1.0},
        "domain_entropy": 0.0,
        "difficulty": 0.5,
        "unknown": False,
        "tokens": 5,
        "truncated": False,
        "language": "en",
        "neighbors": x,
        "revision": MANIFEST.revision,
    }
    return Signals(**{**values, **changes})


def facts(
    x: np.ndarray, *, prompt_tokens: int = 500, max_output: int | None = None, **changes: Any
) -> RoutingContext:
    unread = {key: changes.pop(key) for key in ("unknown", "revision", "difficulty") if key in changes}
    view = RequestView(Api.CHAT_COMPLETIONS, "auto", max_output_tokens=max_output)
    head = RequestHead("POST", "/v1/chat/completions", {})
    return RoutingContext(head, view, "en", prompt_tokens, signals=signals(x, **unread), **changes)


def compiled(settings: dict[str, Any], material: Files, pools: Any = POOLS) -> Any:
    return plans(configured(settings, pools), material)["main"]


def configured(settings: dict[str, Any], pools: Any = POOLS) -> Config:
    return config(pools=pools, strategies={"s": settings})


def problems(settings: dict[str, Any], material: Files, pools: Any = POOLS) -> list[str]:
    _, found = build_policies(configured(settings, pools), material)
    return [f"{'.'.join(map(str, each.path))}: {each.message}" for each in found]


# --- similarity ---

STORED = SimilarityArtifact(
    manifest("similarity"),
    np.stack([unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(1, 1, 0, 0)]),
    None,
    np.asarray([1.0, 0.0, 0.5], dtype=np.float32),
    10.0,
    0,
    QUANTILES,
)
SIMILARITY = {
    "kind": "similarity",
    "weak": "small",
    "strong": "large",
    "strong_share": 0.5,
    "artifact": "a.npz",
}


class TestSimilarity:
    def test_the_win_rate_is_bradley_terrys_by_hand(self) -> None:
        # Cosines 1, 0, 1/sqrt 2 with the largest 1: weights 10^2, 10^1, 10^1.7071 = 50.94.
        expected = (100 * 1 + 10 * 0 + 50.9457 * 0.5) / (100 + 10 + 50.9457)
        assert STORED.score()(unit(1, 0, 0, 0)) == pytest.approx(expected, abs=1e-5)

    def test_the_closed_form_is_where_the_likelihood_is_flat(self) -> None:
        rng = np.random.default_rng(3)
        rows = rng.standard_normal((50, D)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        wins = rng.choice([0.0, 0.5, 1.0], 50).astype(np.float32)
        x = unit(1, 2, 3, 4)
        p = dataclasses.replace(STORED, embeddings=rows, wins=wins).score()(x)
        cosine = (rows @ x).astype(np.float64)
        weights = 10.0 ** (1.0 + cosine / cosine.max())

        def log_likelihood(xi: float) -> float:
            return float(weights @ (wins * -np.log1p(np.exp(-xi)) + (1 - wins) * -np.log1p(np.exp(xi))))

        xi = float(np.log(p / (1 - p)))
        assert log_likelihood(xi) > max(log_likelihood(xi - 0.01), log_likelihood(xi + 0.01))

    def test_only_the_nearest_count_if_so_fitted(self) -> None:
        nearest = dataclasses.replace(STORED, neighbors=1)
        assert nearest.score()(unit(1, 0.1, 0, 0)) == pytest.approx(1.0)
        assert nearest.score()(unit(0.1, 1, 0, 0)) == pytest.approx(0.0)

    def test_on_axes_the_cosine_is_taken_within_them(self) -> None:
        axes = np.eye(2, D, dtype=np.float32)
        stored = dataclasses.replace(STORED, embeddings=STORED.embeddings[:, :2], axes=axes)
        # What lies outside the axes is left out, and the rest scaled to length 1.
        assert stored.score()(unit(1, 0, 9, 0)) == pytest.approx(STORED.score()(unit(1, 0, 0, 0)))
        assert 0.0 <= stored.score()(unit(0, 0, 1, 0)) <= 1.0

    def test_a_prompt_like_those_the_strong_model_won_goes_to_it(self) -> None:
        subject = compiled(SIMILARITY, {"s": {"artifact": STORED}})
        assert decided(subject, facts(unit(1, 0, 0, 0))).pool == "large"
        decision = decided(subject, facts(unit(0, 1, 0, 0)))
        assert decision.pool == "small"
        assert decision.reason.startswith("similarity 0.")
        assert decision.choice.score == pytest.approx((10 * 1 + 50.9457 * 0.5) / 160.9457, abs=1e-4)

    def test_the_nearest_prompts_are_shown_with_who_won_there(self) -> None:
        strategy = compiled(SIMILARITY, {"s": {"artifact": STORED}}).strategies["s"]
        near = strategy.near(signals(unit(1, 0, 0, 0)))
        assert [(each.name, each.result) for each in near] == [
            ("prompt 0", "the strong model won"),
            ("prompt 2", "a tie"),
            ("prompt 1", "the weak model won"),
        ]
        assert [each.closeness for each in near] == pytest.approx([1.0, 0.7071, 0.0], abs=1e-4)
        assert list(strategy.near(signals(unit(1, 0, 0, 0), revision="f" * 12))) == []

    def test_nothing_similar_is_no_division_by_zero(self) -> None:
        assert 0.0 <= STORED.score()(unit(0, 0, 0, 1)) <= 1.0
        assert 0.0 <= STORED.score()(unit(-1, -1, 0, 0)) <= 1.0

    def test_text_of_another_bundle_or_unknown_text_goes_to_the_unsure(self) -> None:
        subject = compiled({**SIMILARITY, "on_unknown": "eyes"}, {"s": {"artifact": STORED}})
        other = decided(subject, facts(unit(0, 1, 0, 0), revision="f" * 12))
        assert (other.pool, other.reason, other.choice.score) == (
            "eyes",
            "similarity is unknown in its language",
            None,
        )
        assert decided(subject, facts(unit(0, 1, 0, 0), unknown=True)).pool == "eyes"
        longer = np.zeros(9, dtype=np.float32)
        assert decided(subject, facts(longer)).pool == "eyes"
        assert decided(subject, facts(unit(0, 1, 0, 0), revision="f" * 12, quality=0.0)).pool == "small"


# --- factorization ---

FACTORS = FactorizationArtifact(
    manifest("factorization"),
    ("m-l", "m-s", "other"),
    np.asarray([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32),
    np.asarray([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=np.float32),
    np.asarray([0.5, 0.25], dtype=np.float32),
    QUANTILES,
)
FACTORIZATION = {**SIMILARITY, "kind": "factorization"}


class TestFactorization:
    def test_the_probability_is_the_bilinear_models_by_hand(self) -> None:
        # W x + b = (1.5, .25): delta is 3 and .25, the difference 2.75.
        assert FACTORS.score("m-l", "m-s")(unit(1, 0, 0, 0)) == pytest.approx(1 / (1 + np.exp(-2.75)))

    def test_swapping_the_models_swaps_the_probability(self) -> None:
        x = unit(1, 2, 0, 1)
        forth, back = FACTORS.score("m-l", "m-s")(x), FACTORS.score("m-s", "m-l")(x)
        assert forth + back == pytest.approx(1.0)

    def test_models_are_found_by_the_pools_own_names(self) -> None:
        subject = compiled(FACTORIZATION, {"s": {"artifact": FACTORS}})
        assert decided(subject, facts(unit(1, 0, 0, 0))).pool == "large"

    def test_a_pair_file_calls_them_strong_and_weak(self) -> None:
        pair = dataclasses.replace(FACTORS, models=("strong", "weak", "other"))
        assert not problems(FACTORIZATION, {"s": {"artifact": pair}})

    def test_a_model_that_is_not_there_is_an_error_with_a_hint(self) -> None:
        settings = {**FACTORIZATION, "weak_model": "othr"}
        assert problems(settings, {"s": {"artifact": FACTORS}}) == [
            "strategies.s.weak_model: the artifact has no model 'othr' (did you mean 'other'?)"
        ]

    def test_a_share_is_known_for_the_pair_that_was_fitted_alone(self) -> None:
        settings = {**FACTORIZATION, "weak_model": "other"}
        [problem] = problems(settings, {"s": {"artifact": FACTORS}})
        assert problem == (
            "strategies.s.strong_share: the artifact has quantiles only for m-l over m-s: "
            "for m-l over other add a calibration"
        )
        del settings["strong_share"]
        assert not problems({**settings, "threshold": 0.5}, {"s": {"artifact": FACTORS}})

    def test_a_calibration_is_of_one_pair(self) -> None:
        made = calibration(score="factorization", artifact=FACTORS.pair_digest("m-l", "other"))
        given = {"s": {"artifact": FACTORS, "calibration": made}}
        settings = {**FACTORIZATION, "calibration": "c.json"}
        assert not problems({**settings, "weak_model": "other"}, given)
        [problem] = problems(settings, given)
        assert "strategies.s.calibration: is of artifact" in problem


# --- what makes an artifact or a calibration unfit ---


@pytest.mark.parametrize(
    ("settings", "artifact"),
    [(SIMILARITY, STORED), (FACTORIZATION, FACTORS)],
    ids=["similarity", "factorization"],
)
def test_an_artifact_of_another_bundle_is_an_error_that_names_both(settings: Any, artifact: Any) -> None:
    stale = dataclasses.replace(
        artifact, manifest=artifact.manifest.model_copy(update={"bundle": "old", "revision": "a" * 12})
    )
    [problem] = problems(settings, {"s": {"artifact": stale}})
    assert problem.startswith("strategies.s.artifact: was fitted on bundle old aaaaaaaaaaaa")
    assert f"this is test {MANIFEST.revision}" in problem


def calibration(**changes: Any) -> Calibration:
    values = {"score": "threshold", "bundle": "test", "revision": MANIFEST.revision, "rows": 9}
    quantiles = tuple(n / 200 for n in range(101))
    return Calibration.model_validate({**values, "quantiles": quantiles, **changes})


class TestCalibration:
    SETTINGS = {"kind": "threshold", "weak": "small", "strong": "large", "calibration": "c.json"}

    def test_a_share_is_of_the_calibrations_prompts(self) -> None:
        subject = compiled({**self.SETTINGS, "strong_share": 0.5}, {"s": {"calibration": calibration()}})
        assert decided(subject, facts(unit(1, 0, 0, 0), difficulty=0.26)).pool == "large"
        assert decided(subject, facts(unit(1, 0, 0, 0), difficulty=0.24)).pool == "small"

    def test_a_share_starts_with_the_calibrations_prompts_and_follows_the_traffic(self) -> None:
        known = calibration()
        settings = {**self.SETTINGS, "strong_share": 0.5}
        subject = compiled(settings, {"s": {"calibration": known}})
        assert subject.strategies["s"].follows == (0.5, known.quantiles)
        still = compiled({**settings, "follow_traffic": False}, {"s": {"calibration": known}})
        assert still.strategies["s"].follows is None

    def test_a_quality_drop_becomes_the_share_that_keeps_it(self) -> None:
        known = calibration(quality=tuple(np.linspace(0.6, 0.8, 101).tolist()))
        subject = compiled({**self.SETTINGS, "max_quality_drop": 0.1}, {"s": {"calibration": known}})
        # A share of .6 lies at the 40 % quantile, .2.
        assert subject.strategies["s"].follows is None, "the quality is known at this threshold only"
        assert decided(subject, facts(unit(1, 0, 0, 0), difficulty=0.21)).choice.threshold == pytest.approx(
            0.2
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"score": "similarity"}, "is of a similarity score, but this strategy is a threshold"),
            (
                {"revision": "b" * 12, "bundle": "old"},
                "was made with bundle old bbbbbbbbbbbb, but this is test",
            ),
            ({"artifact": "c" * 12}, "is of artifact cccccccccccc"),
            ({}, "max_quality_drop: the calibration has no outcomes"),
        ],
    )
    def test_a_calibration_of_something_else_is_an_error(self, change: dict[str, Any], message: str) -> None:
        settings = {**self.SETTINGS, "max_quality_drop": 0.1}
        [problem] = problems(settings, {"s": {"calibration": calibration(**change)}})
        assert message in problem

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"strong_share": 0.3, "threshold": 0.5}, "exactly one of"),
            ({}, "exactly one of"),
            ({"max_quality_drop": 0.1, "calibration": None}, "max_quality_drop needs a calibration"),
        ],
    )
    def test_settings_that_contradict_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            configured({**self.SETTINGS, **settings})


# --- clusters ---

TOPICS = ClustersArtifact(manifest("clusters"), np.eye(2, D, dtype=np.float32), None, ("one", "two"))
FIRST, SECOND = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
CLUSTERS = {"kind": "clusters", "artifact": "a.npz", "profiles": "profiles", "shrinkage": 1e-6}


def profile(model: str, errors: tuple[float, float], **changes: Any) -> Profile:
    """Error rates in the two clusters, from a thousand answers each."""
    counts = {"answers": (1_000, 1_000), "errors": tuple(1_000 * rate for rate in errors)}
    return Profile.model_validate({"model": model, "clusters": TOPICS.digest, **counts, **changes})


PROFILES = {
    "m-s": profile("m-s", (0.1, 0.9)),
    "m-e": profile("m-e", (0.5, 0.5)),
    "m-l": profile("m-l", (0.08, 0.1)),
}


def clusters(profiles: Any = PROFILES, **settings: Any) -> Any:
    material = {"s": {"artifact": TOPICS, "profiles": lambda: profiles}}
    return compiled({**CLUSTERS, **settings}, material, PRICED)


class TestClusters:
    def test_the_nearest_cluster_is_shown_with_the_pools_errors_there(self) -> None:
        subject = clusters()
        x = TOPICS.centroids[1] / np.linalg.norm(TOPICS.centroids[1])
        decided(subject, facts(x))
        [nearest] = subject.strategies["s"].near(signals(x))
        assert (nearest.name, nearest.closeness) == (TOPICS.names[1], 1.0)
        assert "small errs 0." in nearest.result

    def test_errors_shrink_to_the_models_own_mean_or_by_laplace(self) -> None:
        given = profile("m", (0, 0)).model_copy(update={"answers": (10, 0), "errors": (2, 0)})
        assert cluster_errors(given, "shrunk", 20) == pytest.approx([(2 + 20 * 0.2) / 30, 0.2])
        assert cluster_errors(given, "laplace", 20) == pytest.approx([3 / 12, 1 / 2])

    def test_tokens_of_a_cluster_without_any_are_the_models_mean(self) -> None:
        given = profile("m", (0, 0), output_tokens=(100.0, None))
        assert cluster_tokens(given, 300) == pytest.approx([100, 100])
        assert cluster_tokens(profile("m", (0, 0)), 300) == pytest.approx([300, 300])

    def test_the_cheap_pool_has_what_it_is_good_at_and_the_dear_one_the_rest(self) -> None:
        subject = clusters()
        first, second = decided(subject, facts(FIRST)), decided(subject, facts(SECOND))
        assert (first.pool, second.pool) == ("small", "large")
        assert first.choice.score == pytest.approx(0.1, abs=1e-3)
        assert first.reason.startswith("error 0.10 at cost 0.1")

    def test_both_ends_of_quality_are_promises(self) -> None:
        subject = clusters(on_unknown="eyes")
        pressed = Conditions({"small": 1.0, "large": 1.0}, {"s": 5.0})
        for x in (FIRST, SECOND):
            assert decided(subject, facts(x, quality=0.0, conditions=pressed)).pool == "small"
            assert decided(subject, facts(x, quality=1.0, conditions=pressed)).pool == "large"
            assert decided(subject, facts(x, quality=0.0, unknown=True)).pool == "small"
            assert decided(subject, facts(x, quality=1.0, revision="f" * 12)).pool == "large"

    def test_they_are_kept_for_a_text_that_nobody_read(self) -> None:
        for quality, pool in ((0.0, "small"), (1.0, "large")):
            unread = dataclasses.replace(facts(unit(1, 0, 0, 0)), signals=None, fallback="deadline")
            assert decided(clusters(), dataclasses.replace(unread, quality=quality)).pool == pool

    def test_a_higher_quality_never_raises_the_expected_error(self) -> None:
        subject = clusters()
        scores = [
            decided(subject, facts(SECOND, quality=q)).choice.score or 0.0 for q in np.linspace(0, 1, 21)
        ]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == 3

    def test_the_trade_off_is_the_setting_at_one_half_and_leaning_multiplies_it(self) -> None:
        assert trade_off(0.5, 0.1) == pytest.approx(0.1)
        assert trade_off(0.8, 0.1) == pytest.approx(0.025)
        # A bias adds to the log-odds of quality.
        assert trade_off(0.5, 0.1, bias=np.log(4.0)) == pytest.approx(trade_off(0.8, 0.1))

    def test_a_leaning_moves_the_choice(self) -> None:
        subject = clusters()
        frugal = facts(SECOND, conditions=Conditions(bias={"s": -4.0}))
        assert decided(subject, frugal).pool == "small"
        assert decided(subject, facts(SECOND, conditions=Conditions(bias={"other": -4.0}))).pool == "large"

    def test_pressure_sends_away_those_with_least_to_lose_first(self) -> None:
        near = {**PROFILES, "m-e": profile("m-e", (0.12, 0.16))}
        subject = clusters(near)
        assert decided(subject, facts(FIRST)).pool == "small"
        pressed = Conditions({"small": 1.0})
        moved = decided(subject, facts(FIRST, conditions=pressed))
        assert moved.pool == "eyes"
        assert moved.reason.endswith("(load small to eyes)")
        assert decided(clusters(), facts(SECOND, conditions=Conditions({"large": 0.3}))).pool == "large"

    def test_a_long_prompt_weighs_its_price(self) -> None:
        subject = clusters()
        assert decided(subject, facts(SECOND, prompt_tokens=200)).pool == "large"
        assert decided(subject, facts(SECOND, prompt_tokens=90_000)).pool == "small"

    def test_an_answer_costs_no_more_than_the_client_allows(self) -> None:
        talkative = {**PROFILES, "m-l": profile("m-l", (0.08, 0.1), output_tokens=(50_000.0, 50_000.0))}
        subject = clusters(talkative)
        assert decided(subject, facts(SECOND)).pool == "eyes"
        assert decided(subject, facts(SECOND, max_output=100)).pool == "large"

    def test_unknown_text_goes_to_the_least_error_overall_or_where_it_is_told(self) -> None:
        assert decided(clusters(), facts(FIRST, unknown=True)).pool == "large"
        assert decided(clusters(on_unknown="eyes"), facts(FIRST, unknown=True)).pool == "eyes"
        other = decided(clusters(), facts(FIRST, revision="f" * 12))
        assert (other.pool, other.reason) == ("large", "clusters are unknown in its language")

    def test_a_profile_that_comes_later_makes_its_pool_a_candidate(self) -> None:
        current = {"m-l": PROFILES["m-l"]}
        holder = [current]
        material = {"s": {"artifact": TOPICS, "profiles": lambda: holder[0]}}
        subject = compiled(CLUSTERS, material, PRICED)
        assert decided(subject, facts(FIRST)).pool == "large"
        holder[0] = PROFILES
        assert decided(subject, facts(FIRST)).pool == "small"
        holder[0] = {}
        decision = decided(subject, facts(FIRST))
        assert (decision.pool, decision.reason) == ("large", "no pool with a profile could answer")

    def test_profiles_of_other_clusters_do_not_count(self) -> None:
        foreign = {**PROFILES, "m-s": profile("m-s", (0.0, 0.0), clusters="0" * 12)}
        assert decided(clusters(foreign), facts(FIRST, quality=0.0)).pool == "eyes"

    def test_pools_may_be_named(self) -> None:
        assert decided(clusters(pools=["eyes", "large"]), facts(FIRST, quality=0.0)).pool == "eyes"

    def test_a_pool_without_a_price_cannot_be_traded(self) -> None:
        material = {"s": {"artifact": TOPICS, "profiles": lambda: PROFILES}}
        assert problems({**CLUSTERS, "pools": ["small"]}, material) == [
            "strategies.s.pools.0: pool small has no price"
        ]
        assert "no pool has a price" in problems(CLUSTERS, material)[0]


@pytest.mark.parametrize(
    ("settings", "material"), [(SIMILARITY, STORED), (FACTORIZATION, FACTORS)], ids=["similarity", "factors"]
)
class TestEveryPairUnderControllers:
    """Controllers act in the cut-off, so no strategy of a pair can forget them."""

    def test_pressure_takes_its_requests_and_says_so(self, settings: dict[str, Any], material: Any) -> None:
        subject = compiled(settings, {"s": {"artifact": material}})
        # The prompt's own score is made the threshold, so that any pressure moves it.
        score = decided(subject, facts(unit(1, 0, 0, 0))).choice.score
        assert score is not None
        subject = compiled(
            {**settings, "strong_share": None, "threshold": score - 0.01}, {"s": {"artifact": material}}
        )
        assert decided(subject, facts(unit(1, 0, 0, 0))).pool == "large"
        pressed = decided(subject, facts(unit(1, 0, 0, 0), conditions=Conditions({"large": 0.9})))
        assert pressed.pool == "small"
        assert "(load share " in pressed.reason
        assert pressed.choice.share is not None

    def test_a_leaning_moves_it_both_ways(self, settings: dict[str, Any], material: Any) -> None:
        subject = compiled(settings, {"s": {"artifact": material}})
        pools = [
            decided(subject, facts(x, conditions=Conditions(bias={"s": leaning}))).pool
            for x, leaning in ((unit(1, 0, 0, 0), -8.0), (unit(0, 1, 0, 0), 8.0))
        ]
        assert pools == ["small", "large"]

    def test_a_conversation_is_held_where_its_text_is_unknown(
        self, settings: dict[str, Any], material: Any
    ) -> None:
        subject = compiled(settings, {"s": {"artifact": material}})
        held = facts(unit(1, 0, 0, 0), unknown=True, held=Held("small"))
        decision = decided(subject, held)
        assert (decision.pool, decision.session) == ("small", "kept")

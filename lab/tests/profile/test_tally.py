"""From graded answers to a profile, and how sure a profile is."""

from __future__ import annotations

import numpy as np
import pytest
from semroute_lab.profile.tally import certainty, interval, profile_of_sums, sums_of

from semroute_extproc.strategies.artifact import ArtifactManifest
from semroute_extproc.strategies.clusters import ClustersArtifact
from semroute_extproc.strategies.profiles import Profile, is_thin

MANIFEST = ArtifactManifest(kind="clusters", bundle="test", revision="0" * 12, dimensions=2, rows=4)
HARD = ClustersArtifact(MANIFEST, np.eye(2, dtype=np.float32), None, ("right", "up"))
SOFT = ClustersArtifact(
    MANIFEST, np.zeros((2, 2), dtype=np.float32), np.log([3.0, 1.0]).astype(np.float32), ("a", "b")
)
X = np.asarray([[1, 0], [1, 0], [0, 1]], dtype=np.float32)


def test_answers_and_errors_are_counted_in_the_nearest_cluster() -> None:
    found = profile_of_sums(HARD, sums_of(HARD, X, [1.0, 0.0, 0.5], [10, 30, None]), model="m")
    assert found.answers == (2.0, 1.0)
    assert found.errors == (1.0, 0.5)
    assert found.output_tokens == (20.0, None)
    assert found.mean_error == pytest.approx(0.5)
    assert found.clusters == HARD.digest


def test_a_learned_map_shares_an_answer_out() -> None:
    found = profile_of_sums(SOFT, sums_of(SOFT, X, [1.0, 1.0, 0.0], []), model="m")
    assert found.answers == pytest.approx((2.25, 0.75))
    assert found.errors == pytest.approx((1.5, 0.5))


def test_with_several_clusterings_an_answer_counts_once_in_each() -> None:
    centroids = np.concatenate([np.eye(2), np.eye(2)]).astype(np.float32)
    twice = ClustersArtifact(MANIFEST, centroids, None, tuple("abcd"), 2)
    found = profile_of_sums(twice, sums_of(twice, X, [1, 0, 0], []), model="m")
    assert found.answers == pytest.approx((2, 1, 2, 1))
    assert found.mean_error == pytest.approx(1 / 3)


# How sure a profile is.


def test_the_interval_of_an_error_rate_is_wilsons() -> None:
    """Figures of Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert interval(0, 0) == (0.0, 1.0)
    low, high = interval(20, 20)
    assert (round(low, 4), high) == (0.8389, pytest.approx(1.0))


def test_a_thin_profile_says_how_thin() -> None:
    thin = Profile(model="m", clusters="0" * 12, answers=(50, 3, 0, 20), errors=(10, 1, 0, 5))
    assert is_thin(thin)
    told = certainty(thin)
    assert "2 of 4 clusters have fewer than 10 answers, 1 of them none" in told
    assert "error 0.22 overall" in told


def test_a_thick_profile_says_how_near_it_is() -> None:
    thick = Profile(model="m", clusters="0" * 12, answers=(400, 400), errors=(100, 200))
    assert not is_thin(thick)
    assert "known to within ±0.05" in certainty(thick)


def test_with_several_clusterings_an_answer_counts_once_overall() -> None:
    twice = Profile(model="m", clusters="0" * 12, answers=(100, 100), errors=(30, 30))
    assert "(0.22 to 0.40" in certainty(twice, clusterings=2)

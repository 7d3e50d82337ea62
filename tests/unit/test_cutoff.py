"""Weak or strong by a score: a share of reference traffic is a threshold, and back."""

from __future__ import annotations

import pytest

from semroute_extproc.policy.cutoff import share_for_threshold, threshold_for_share

QUANTILES = tuple(n / 100 for n in range(101))


@pytest.mark.parametrize(("share", "threshold"), [(0.0, float("inf")), (1.0, 0.0), (0.3, 0.7), (0.25, 0.75)])
def test_a_share_of_the_traffic_is_a_quantile(share: float, threshold: float) -> None:
    assert threshold_for_share(QUANTILES, share) == pytest.approx(threshold)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.995])
def test_the_share_of_a_threshold_is_the_share_it_came_from(share: float) -> None:
    uneven = [q**3 for q in QUANTILES]
    assert share_for_threshold(uneven, threshold_for_share(uneven, share)) == pytest.approx(share)

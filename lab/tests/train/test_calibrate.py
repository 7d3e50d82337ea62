"""Calibration against cases whose answer is known."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import fill as calibrate  # noqa: E402
from semroute_lab.train.fit import IGNORE  # noqa: E402


def test_the_temperature_undoes_a_known_overconfidence():
    rng = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 5, generator=rng) * 1.5
    target = torch.multinomial(honest.softmax(1), 1, generator=rng)[:, 0]
    assert calibrate.temperature(honest * 3.0, target) == pytest.approx(3.0, rel=0.1)


def test_rows_without_a_target_do_not_move_the_temperature():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [9.0, 0.0]])
    target = torch.tensor([0, 1, 1, 0])
    ignored = torch.tensor([0, 1, 1, IGNORE])
    assert calibrate.temperature(logits, ignored) == pytest.approx(
        calibrate.temperature(logits[:3], target[:3])
    )


def test_platt_scaling_finds_scale_and_shift():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(20000, generator=rng) * 2
    event = torch.bernoulli(torch.sigmoid(0.5 * logits - 1.0), generator=rng)
    scale, shift = calibrate.platt(logits, event, torch.ones(20000))
    assert scale == pytest.approx(0.5, abs=0.05)
    assert shift == pytest.approx(-1.0, abs=0.05)


def test_platt_scaling_never_turns_the_ranking_round():
    logits = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    scale, _ = calibrate.platt(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4))
    assert scale >= 0


def test_platt_scaling_reproduces_the_mean_of_soft_targets():
    logits = torch.linspace(-2, 2, 101)
    target = torch.full((101,), 0.3)
    target[50] = float("nan")
    scale, shift = calibrate.platt(logits, target, torch.ones(101))
    assert float(torch.sigmoid(scale * logits + shift).mean()) == pytest.approx(0.3, abs=0.01)


def test_kmeans_separates_two_groups():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    x[40:] += 5.0
    cluster = torch.cdist(x, calibrate.kmeans(x, 2, seed=0)).argmin(1)
    assert len(set(cluster[:40].tolist())) == len(set(cluster[40:].tolist())) == 1
    assert cluster[0] != cluster[40]


def test_kmeans_survives_more_clusters_than_distinct_rows():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert calibrate.kmeans(x, 3, seed=0).shape == (3, 2)


def test_spherical_kmeans_finds_well_separated_directions():
    axes = torch.eye(3)
    vectors = torch.nn.functional.normalize(
        axes.repeat_interleave(20, 0) + 0.05 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0)),
        dim=1,
    )
    found = min(
        (calibrate.spherical_kmeans(vectors, 3, seed) for seed in range(5)),
        key=lambda c: float(-(vectors @ c.T).max(1).values.sum()),
    )
    assert (found @ axes.T).max(0).values.min() > 0.99
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_the_threshold_of_the_unknown_leaves_out_the_asked_share():
    vectors = torch.nn.functional.normalize(
        torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    centroids = vectors[:20]
    threshold = calibrate.unknown_threshold(vectors, centroids, 0.05)
    assert float(((vectors @ centroids.T).max(1).values < threshold).float().mean()) == pytest.approx(
        0.05, abs=0.002
    )


def test_quantiles_ascend_and_span_the_values():
    values = torch.rand(500, generator=torch.Generator().manual_seed(0))
    found = calibrate.quantiles(values)
    assert len(found) == 101
    assert found == sorted(found)
    assert found[0] == pytest.approx(float(values.min()), abs=1e-6)
    assert math.isclose(found[50], float(np.median(values.numpy())), abs_tol=1e-6)

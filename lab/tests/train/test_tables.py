"""Cluster tables against cases whose clusters are plain to see."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import tables  # noqa: E402


@pytest.fixture
def two_groups():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=rng) * 0.1
    x[40:] += 5.0
    return x


def test_kmeans_separates_two_groups(two_groups):
    cluster = tables.nearest(two_groups, tables.kmeans(two_groups, 2, seed=0))
    assert len(set(cluster[:40].tolist())) == 1
    assert len(set(cluster[40:].tolist())) == 1
    assert cluster[0] != cluster[40]


def test_kmeans_survives_more_clusters_than_distinct_rows():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert tables.kmeans(x, 3, seed=0).shape == (3, 2)


def test_the_means_are_shrunk_to_the_overall_mean(monkeypatch):
    monkeypatch.setattr(tables, "SHRINKAGE", 2.0)
    found = tables.shrunk_means(torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, -0.5]), 3)
    # The overall mean is .5: (2 + 2 * .5) / 4, (-.5 + 2 * .5) / 3, (0 + 2 * .5) / 2.
    assert found.tolist() == pytest.approx([0.75, 1 / 6, 0.5])


def test_a_table_gives_a_row_the_mean_of_its_group(two_groups, monkeypatch):
    monkeypatch.setattr(tables, "CLUSTERS", 2)
    monkeypatch.setattr(tables, "SHRINKAGE", 0.0)
    target = torch.cat([torch.zeros(40), torch.ones(40)])
    table = tables.fill(two_groups, target, seed=0, clusterings=3)
    assert table(torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])).tolist() == pytest.approx([0.0, 1.0])


def test_a_table_is_the_same_for_the_same_seed(two_groups):
    target = torch.arange(80.0)
    first, second = (tables.fill(two_groups, target, seed=3, clusterings=2) for _ in range(2))
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.centroids, second.centroids)


def test_out_of_fold_values_do_not_know_their_own_target():
    # Pure noise: an honest value cannot correlate with the target, one that has seen it would.
    rng = torch.Generator().manual_seed(0)
    x, target = torch.randn(400, 4, generator=rng), torch.randn(400, generator=rng)
    unseen = tables.out_of_fold(x, target, seed=0)
    seen = tables.fill(x, target, seed=0)(x)
    assert float(torch.corrcoef(torch.stack([unseen, target]))[0, 1]) < 0.12
    assert float(torch.corrcoef(torch.stack([seen, target]))[0, 1]) > 0.15

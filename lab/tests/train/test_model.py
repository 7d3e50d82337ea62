"""The network: shapes, masking, and what the difficulty reads."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.bert import Encoder  # noqa: E402
from semroute_lab.train.model import MEMBERS, ClusterTable, Heads, Network  # noqa: E402


@pytest.fixture
def network(tiny):
    torch.manual_seed(0)
    return Network(Encoder(tiny), Heads(8, 12, 14, 10)).eval()


def test_outputs_have_the_documented_shapes(network):
    ids, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    embedding, domain, difficulty, task, neighbors = network(ids, mask, torch.zeros(3, 12))
    assert embedding.shape == (3, 8)
    assert domain.shape == (3, 14)
    assert difficulty.shape == (3,)
    assert task.shape == (3, 10)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3))
    assert torch.allclose(neighbors.norm(dim=1), torch.ones(3))


def test_padding_changes_nothing(network):
    ids = torch.randint(0, 50, (1, 5))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0]])
    short = network(ids, torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 12))
    long = network(padded, mask, torch.zeros(1, 12))
    for a, b in zip(short, long, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_difficulty_is_the_mean_of_its_members(network):
    pooled, surface = torch.randn(3, 8), torch.randn(3, 12)
    members = network.heads.parts(pooled, surface).members
    assert members.shape == (3, MEMBERS)
    assert members.std(1).min() > 0
    assert torch.allclose(network.heads(pooled, surface)[2], members.mean(1))


def test_a_cluster_table_averages_the_means_of_the_nearest_clusters():
    table = ClusterTable(clusterings=2, clusters=2, inputs=1)
    table.centroids.copy_(torch.tensor([[0.0], [1.0], [-1.0], [3.0]]))
    table.offset.copy_((table.centroids**2).sum(1) / 2)
    table.means.copy_(torch.tensor([[10.0, 20.0], [1.0, 2.0]]))
    # .9 is nearest to 1 in the first clustering and, of -1 and 3, to -1 in the second.
    assert table(torch.tensor([[0.9]])).tolist() == pytest.approx([(20.0 + 1.0) / 2])


@pytest.fixture
def tabled():
    """Heads whose networks say .5, a table of two clusters by the embedding, and a gate by the surface."""
    torch.manual_seed(0)
    heads = Heads(2, 12, 14, 10).eval()
    with torch.no_grad():
        heads.score.zero_()
        heads.offset.zero_()
        heads.gate.weight.zero_()
        heads.gate.weight[0, 2] = 100.0
        heads.gate.bias.zero_()
        heads.recall.weight.copy_(torch.eye(2))
        heads.recall.bias.zero_()
    heads.table = ClusterTable(1, 2, 2 + 12)
    heads.table.centroids[:, :2] = torch.eye(2)
    heads.table.means.copy_(torch.tensor([[0.2, 0.7]]))
    heads.table_scale.fill_(10.0)
    heads.table_shift.fill_(-4.0)
    return heads


def difficulty(heads, feature):
    surface = torch.zeros(2, 12)
    surface[:, 0] = feature
    return heads(torch.eye(2), surface)[2].tolist()


def test_text_like_the_tables_gets_its_calibrated_value(tabled):
    assert difficulty(tabled, 1.0) == pytest.approx([-2.0, 3.0], abs=1e-3)


def test_other_text_gets_the_networks_value(tabled):
    assert difficulty(tabled, -1.0) == pytest.approx([0.0, 0.0], abs=1e-3)


def test_between_them_the_probabilities_are_mixed(tabled):
    mixed = (torch.tensor([-2.0, 3.0]).sigmoid() + 0.5) / 2
    assert torch.tensor(difficulty(tabled, 0.0)).sigmoid().tolist() == pytest.approx(mixed.tolist(), abs=1e-3)


def test_without_a_table_the_gate_decides_nothing(tabled):
    tabled.table = None
    assert difficulty(tabled, 1.0) == [0.0, 0.0]


def test_surface_features_are_clipped():
    heads = Heads(8, 12, 14, 10)
    assert heads.normalized(torch.full((1, 12), 1e9)).max() == 3.0

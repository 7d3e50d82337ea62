"""The network: shapes, masking, and what the difficulty reads."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.bert import Encoder  # noqa: E402
from semroute_lab.train.model import DIFFICULTY_WIDTH, MEMBERS, ClusterTable, Heads, Network  # noqa: E402


@pytest.fixture
def network(tiny):
    torch.manual_seed(0)
    return Network(Encoder(tiny), Heads(8, 12, 14, 10)).eval()


def test_outputs_have_the_documented_shapes(network):
    ids, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    embedding, domain, difficulty, task, neighbours = network(ids, mask, torch.zeros(3, 12))
    assert embedding.shape == (3, 8)
    assert domain.shape == (3, 14)
    assert difficulty.shape == (3,)
    assert task.shape == (3, 10)
    assert torch.allclose(embedding.norm(dim=1), torch.ones(3))
    assert torch.allclose(neighbours.norm(dim=1), torch.ones(3))


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
    """Heads whose difficulty is the cluster table's value, and a table of two clusters by the embedding."""
    torch.manual_seed(0)
    heads = Heads(2, 12, 14, 10).eval()
    with torch.no_grad():
        # One hidden unit of each member passes the last input on; for large values GELU is the identity.
        heads.hidden.weight.zero_()
        heads.hidden.bias.fill_(100.0)
        heads.hidden.weight[::DIFFICULTY_WIDTH, -1] = 1.0
        heads.score.zero_()
        heads.score[:, 0], heads.offset[:] = 1.0, -100.0
        heads.recall.weight.copy_(torch.eye(2))
        heads.recall.bias.zero_()
    heads.table = ClusterTable(1, 2, 2 + 12)
    heads.table.centroids[:, :2] = torch.eye(2)
    heads.table.means.copy_(torch.tensor([[0.2, 0.7]]))
    heads.table_mean.fill_(0.4)
    heads.table_scale.fill_(0.1)
    return heads


def difficulty(heads, **given):
    out = heads.parts(torch.eye(2), torch.zeros(2, 12), **given)
    return out.members.mean(1).tolist()


def test_the_difficulty_reads_the_value_of_the_cluster_table_in_standard_units(tabled):
    assert difficulty(tabled) == pytest.approx([-2.0, 3.0], abs=1e-4)


def test_a_row_of_the_table_is_read_with_the_value_that_is_given_for_it(tabled):
    assert difficulty(tabled, table=torch.tensor([0.5, 0.3])) == pytest.approx([1.0, -1.0], abs=1e-4)


def test_values_far_from_the_tables_mean_are_clipped(tabled):
    assert difficulty(tabled, table=torch.tensor([9.0, -9.0])) == pytest.approx([3.0, -3.0], abs=1e-4)


def test_without_a_table_the_difficulty_reads_its_mean(tabled):
    tabled.table = None
    assert difficulty(tabled) == pytest.approx([0.0, 0.0], abs=1e-4)


def test_surface_features_are_clipped():
    heads = Heads(8, 12, 14, 10)
    assert heads.normalized(torch.full((1, 12), 1e9)).max() == 3.0

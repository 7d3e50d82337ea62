"""The network: shapes, masking, the mixture of experts."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.bert import Encoder  # noqa: E402
from semroute_lab.train.model import ClusterTable, Heads, Network, mixture_logit  # noqa: E402


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


def test_a_mixture_is_the_mean_of_the_experts_probabilities_weighted_by_the_gate():
    gate = torch.tensor([[math.log(3.0), 0.0]])
    experts = torch.tensor([[0.0, math.log(4.0)]])
    # .75 * .5 + .25 * .8 = .575.
    assert float(torch.sigmoid(mixture_logit(gate, experts))) == pytest.approx(0.575)


def test_a_mixture_stays_finite_at_the_ends():
    found = mixture_logit(torch.zeros(2, 2), torch.tensor([[200.0, 200.0], [-200.0, -200.0]]))
    assert torch.isfinite(found).all()


def test_a_cluster_table_averages_the_means_of_the_nearest_clusters():
    table = ClusterTable(clusterings=2, clusters=2, inputs=1)
    table.centroids.copy_(torch.tensor([[0.0], [1.0], [-1.0], [3.0]]))
    table.offset.copy_((table.centroids**2).sum(1) / 2)
    table.means.copy_(torch.tensor([[10.0, 20.0], [1.0, 2.0]]))
    # .9 is nearest to 1 in the first clustering and, of -1 and 3, to -1 in the second.
    assert table(torch.tensor([[0.9]])).tolist() == pytest.approx([(20.0 + 1.0) / 2])


def test_the_last_expert_reads_the_table_once_there_is_one(network):
    pooled, surface = torch.randn(2, 8), torch.zeros(2, 12)
    heads = network.heads
    before = heads.expert_logits(heads.parts(pooled, surface))
    heads.table = ClusterTable(1, 1, 8 + 12)
    heads.table.means.fill_(0.25)
    heads.expert_scale[-1], heads.expert_shift[-1] = 2.0, 0.5
    after = heads.expert_logits(heads.parts(pooled, surface))
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert after[:, -1].tolist() == pytest.approx([1.0, 1.0])


def test_surface_features_are_clipped():
    heads = Heads(8, 12, 14, 10)
    assert heads.normalized(torch.full((1, 12), 1e9)).max() == 3.0

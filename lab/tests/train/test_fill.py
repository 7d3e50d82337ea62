"""The computed parts of the heads: cluster table, recalled embedding, memory."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import fill  # noqa: E402
from semroute_lab.train.datasets import Example, Part, Rights  # noqa: E402
from semroute_lab.train.fit import States, Targets  # noqa: E402
from semroute_lab.train.model import MEMORY_FLOOR, HeadOutputs, Heads, Memory  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from semroute_extproc.request.text import SURFACE_NAMES  # noqa: E402


@pytest.fixture
def plan(shipped):
    return shipped.fill


def test_a_linear_map_of_the_base_embedding_is_recalled(plan):
    rng = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(500, 6, generator=rng), dim=-1)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng))
    heads = Heads(6, len(SURFACE_NAMES), 14, 10)
    said = []
    fill.fit_recall(heads, base @ turn, base, plan, said.append)
    found = F.normalize(heads.recall(base @ turn), dim=-1)
    assert F.cosine_similarity(found, base).min() > 0.999
    assert "cosine of 1.000 on 500 rows" in said[0]


def outcomes(values, source="exams"):
    """Rows with a gain, and their states: embeddings around two directions, by the gain."""
    rng = torch.Generator().manual_seed(0)
    rights = Rights("MIT", True)
    rows = [
        Example("t", source, f"f:{n}", rights, Part.FIT, gain=value, difficulty=value)
        for n, value in enumerate(values)
    ]
    axes = torch.eye(4)[[0 if value is None or value < 0.5 else 1 for value in values]]
    pooled = axes + 0.1 * torch.randn(len(rows), 4, generator=rng)
    return rows, States(pooled, torch.zeros(len(rows), len(SURFACE_NAMES)), Targets.of(rows))


@pytest.fixture
def heads():
    """Heads that recall the tuned embedding as it is."""
    made = Heads(4, len(SURFACE_NAMES), 14, 10).eval()
    with torch.no_grad():
        made.recall.weight.copy_(torch.eye(4))
        made.recall.bias.zero_()
    return made


def test_too_few_gains_give_no_table(plan, heads):
    rows, states = outcomes([1.0] * 9)
    said = []
    fill.add_table(heads, rows, states, plan, 1, said.append)
    assert heads.table is None
    assert said == ["9 rows with a gain are too few for a cluster table"]


def test_the_table_is_made_of_the_rows_with_a_gain_and_is_calibrated(plan, heads):
    plan = plan.model_copy(update={"clusters": 2, "shrinkage": 0.0, "clusterings": 4})
    rows, states = outcomes([0.1, 0.9] * 40 + [None] * 5)
    said = []
    fill.add_table(heads, rows, states, plan, 1, said.append)
    assert said[0].startswith("cluster table of 80 rows")
    values = heads.table(heads.table_inputs(F.normalize(torch.eye(4)[:2], dim=-1), torch.zeros(2, 12)))
    assert values.tolist() == pytest.approx([0.1, 0.9], abs=0.02)
    calibrated = (heads.table_scale * values + heads.table_shift).sigmoid()
    assert calibrated.tolist() == pytest.approx([0.1, 0.9], abs=0.02)
    # A state with a table can be loaded again.
    heads.load_state_dict({name: each.clone() for name, each in heads.state_dict().items()})


@pytest.fixture
def two_groups():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=rng) * 0.1
    x[40:] += 5.0
    return x


def test_the_means_are_shrunk_to_the_overall_mean():
    found = fill.shrunk_means(torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, -0.5]), 3, 2.0)
    # The overall mean is .5: (2 + 2 * .5) / 4, (-.5 + 2 * .5) / 3, (0 + 2 * .5) / 2.
    assert found.tolist() == pytest.approx([0.75, 1 / 6, 0.5])


def test_a_table_gives_a_row_the_mean_of_its_group(two_groups, plan):
    plan = plan.model_copy(update={"clusters": 2, "shrinkage": 0.0})
    target = torch.cat([torch.zeros(40), torch.ones(40)])
    table = fill.cluster_table(two_groups, target, 3, plan, seed=0)
    assert table(torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]])).tolist() == pytest.approx([0.0, 1.0])


def test_a_table_is_the_same_for_the_same_seed(two_groups, plan):
    target = torch.arange(80.0)
    first, second = (fill.cluster_table(two_groups, target, 2, plan, seed=3) for _ in range(2))
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.centroids, second.centroids)


def test_a_copy_of_a_row_does_not_tell_the_rows_value(plan):
    # Noise, each value four times in one place: a table that has seen a copy knows the value.
    plan = plan.model_copy(update={"clusters": 40, "shrinkage": 0.0, "clusterings": 8})
    rng = torch.Generator().manual_seed(0)
    x, target = torch.randn(60, 4, generator=rng).repeat(4, 1), torch.randn(60, generator=rng).repeat(4)
    places = [f"f:{n}" for n in range(60)] * 4
    unseen = fill.out_of_fold(x, target, places, plan, seed=0)
    seen = fill.out_of_fold(x, target, [f"f:{n}" for n in range(240)], plan, seed=0)
    assert float(torch.corrcoef(torch.stack([unseen, target]))[0, 1]) < 0.3
    assert float(torch.corrcoef(torch.stack([seen, target]))[0, 1]) > 0.8


FREE = Rights("MIT", True)


PLACES = itertools.count(2)


def row(source, domain, place=None):
    return Example("text", source, place or f"f:{next(PLACES)}", FREE, Part.FIT, domain=domain)


def outputs(embedding, domain):
    none = torch.zeros(len(embedding), 1)
    return HeadOutputs(embedding, domain, none, none[:, 0], none, none)


def test_votes_are_the_softmax_of_the_cosines():
    small = Memory(2, 2, 2, 3)
    small.axes.weight.data.copy_(torch.eye(2))
    small.keys.copy_(torch.eye(2))
    small.labels.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]))
    small.sharpness.fill_(math.log(3.0))
    # Cosines 1 and 0: votes of 3/4 and 1/4, none for the middle label.
    found = small(torch.tensor([[1.0, 0.0]]))
    expected = [math.log(0.75 + MEMORY_FLOOR), math.log(MEMORY_FLOOR), math.log(0.25 + MEMORY_FLOOR)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_sources_of_one_domain_are_remembered_in_part_only(plan):
    many = [row("one", 3) for _ in range(plan.cases_max + 50)]
    mixed = [row("mixed", n % 5) for n in range(plan.cases_max + 50)]
    chosen = fill.cases([*many, *mixed, row("none", None)], plan.cases_max, seed=1)
    assert len(chosen) == plan.cases_max + len(mixed)
    assert chosen == sorted(chosen)
    assert all(len(case) == 1 for case in chosen)


def test_a_question_with_and_without_its_options_is_one_case():
    rows = [
        row("bare", 3, "q:2"),
        row("options", 3, "q:2"),
        row("bare", 4, "q:3"),
        row("options", None, "q:3"),
    ]
    assert fill.cases(rows, 700, seed=1) == [[0, 1], [2]]


def test_the_axes_are_the_largest_ones_and_orthonormal():
    torch.manual_seed(0)
    x = torch.randn(500, 4) * torch.tensor([0.1, 3.0, 0.2, 2.0])
    axes = fill.principal_axes(x, 2)
    assert torch.allclose(axes @ axes.T, torch.eye(2), atol=1e-5)
    assert axes.abs().argmax(1).tolist() == [1, 3]


def test_a_memory_that_knows_better_than_the_head_is_listened_to(plan):
    torch.manual_seed(0)
    truth = torch.arange(40) % 2
    embedding = torch.eye(2)[truth]
    head_says_nothing = torch.zeros(40, 14)
    heads = Heads(2, 1, 14, 10)
    part = outputs(embedding, head_says_nothing)
    rows = [row("s", int(t)) for t in truth]
    fill.add_memory(heads, rows, part, part, truth, plan, 1, lambda line: None)
    assert heads.domain_logits(part).argmax(1).tolist() == truth.tolist()

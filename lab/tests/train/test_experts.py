"""The exam expert's line, the recalled embedding, and when an expert stays as it is."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import experts  # noqa: E402
from semroute_lab.train.datasets import Example, Part, Rights  # noqa: E402
from semroute_lab.train.fit import States  # noqa: E402
from semroute_lab.train.losses import Targets  # noqa: E402
from semroute_lab.train.model import Heads  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from semroute_extproc.request.text import SURFACE_NAMES  # noqa: E402

DIMENSIONS = 4
LENGTH = DIMENSIONS + SURFACE_NAMES.index(experts.LENGTH)


def inputs(rows):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(rows, DIMENSIONS + len(SURFACE_NAMES), generator=rng)


def test_half_of_the_line_is_the_gain_and_half_the_length():
    x = inputs(4_000)
    line, unseen = experts.fit_line(x, 0.3 * x[:, 1] + 0.1, DIMENSIONS, seed=1)
    weight = line.weight[0]
    # The gain's weight is shrunk by 10 of 4,010; the length's has the spread of what was read.
    assert weight[1].item() == pytest.approx(0.3 * 4_000 / 4_010, rel=0.01)
    assert weight[LENGTH].item() == pytest.approx(0.3, rel=0.05)
    others = [i for i in range(x.shape[1]) if i not in (1, LENGTH)]
    assert weight[others].abs().max().item() < 1e-3
    assert torch.allclose(unseen, line(x), atol=0.02)


def test_a_row_has_no_part_in_its_own_value():
    # Noise cannot be read from rows that were not seen, whatever it does to those that were.
    x = inputs(60)
    rng = torch.Generator().manual_seed(1)
    gain = torch.randn(60, generator=rng)
    line, unseen = experts.fit_line(x, gain, DIMENSIONS, seed=1)
    seen = line(x).detach() - line.weight[0, LENGTH].item() * x[:, LENGTH]
    kept_back = unseen - line.weight[0, LENGTH].item() * x[:, LENGTH]
    correlation = [torch.corrcoef(torch.stack([values, gain]))[0, 1].item() for values in (seen, kept_back)]
    assert correlation[0] > 0.1 > correlation[1]


def test_a_linear_map_of_the_base_embedding_is_recalled():
    rng = torch.Generator().manual_seed(0)
    base = F.normalize(torch.randn(500, 6, generator=rng), dim=-1)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=rng))
    heads = Heads(6, len(SURFACE_NAMES), 14, 10)
    said = []
    experts.fit_recall(heads, base @ turn, base, said.append)
    found = F.normalize(heads.recall(base @ turn), dim=-1)
    assert F.cosine_similarity(found, base).min() > 0.999
    assert "cosine of 1.000 on 500 rows" in said[0]


def test_too_few_outcomes_leave_the_expert_as_it_is():
    rows = [
        Example("t", "routellm_mmlu", f"f:{n}", Rights("MIT", True), Part.FIT, gain=1.0) for n in range(9)
    ]
    heads = Heads(4, len(SURFACE_NAMES), 14, 10)
    states = States(torch.randn(9, 4), torch.zeros(9, len(SURFACE_NAMES)), Targets.of(rows))
    said = []
    experts.add_table(heads, rows, states, "routellm_mmlu", 1, said.append)
    assert heads.table is None
    assert "too few" in said[0]

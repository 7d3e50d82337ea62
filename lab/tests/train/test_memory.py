"""The memory of the domain head: near texts vote, far ones do not, and calibration rows weigh it."""

from __future__ import annotations

import itertools
import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import memory  # noqa: E402
from semroute_lab.train.datasets import Example, Part, Rights  # noqa: E402
from semroute_lab.train.model import MEMORY_FLOOR, HeadOutputs, Heads, Memory  # noqa: E402

FREE = Rights("MIT", True)


PLACES = itertools.count(2)


def row(source, domain, place=None):
    return Example("text", source, place or f"f:{next(PLACES)}", FREE, Part.FIT, domain=domain)


def outputs(embedding, domain):
    none = torch.zeros(len(embedding), 1)
    return HeadOutputs(embedding, domain, none, none, none, none)


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


def test_sources_of_one_domain_are_remembered_in_part_only():
    many = [row("one", 3) for _ in range(memory.SOURCE_ROWS_MAX + 50)]
    mixed = [row("mixed", n % 5) for n in range(memory.SOURCE_ROWS_MAX + 50)]
    chosen = memory.remembered([*many, *mixed, row("none", None)], seed=1)
    assert len(chosen) == memory.SOURCE_ROWS_MAX + len(mixed)
    assert chosen == sorted(chosen)
    assert all(len(case) == 1 for case in chosen)


def test_a_question_with_and_without_its_options_is_one_case():
    rows = [
        row("bare", 3, "q:2"),
        row("options", 3, "q:2"),
        row("bare", 4, "q:3"),
        row("options", None, "q:3"),
    ]
    assert memory.remembered(rows, seed=1) == [[0, 1], [2]]


def test_the_axes_are_the_largest_ones_and_orthonormal():
    torch.manual_seed(0)
    x = torch.randn(500, 4) * torch.tensor([0.1, 3.0, 0.2, 2.0])
    axes = memory.principal_axes(x, 2)
    assert torch.allclose(axes @ axes.T, torch.eye(2), atol=1e-5)
    assert axes.abs().argmax(1).tolist() == [1, 3]


def test_a_memory_that_knows_better_than_the_head_is_listened_to():
    torch.manual_seed(0)
    truth = torch.arange(40) % 2
    embedding = torch.eye(2)[truth]
    head_says_nothing = torch.zeros(40, 14)
    heads = Heads(2, 1, 14, 10)
    part = outputs(embedding, head_says_nothing)
    memory.add_memory(heads, [row("s", int(t)) for t in truth], part, part, truth, 1, lambda line: None)
    assert heads.domain_logits(part).argmax(1).tolist() == truth.tolist()

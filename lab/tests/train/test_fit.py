"""The multi-task loss against hand-computed cases."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.datasets import Example, Part, Rights  # noqa: E402
from semroute_lab.train.fit import IGNORE, Targets, multitask, soft_binary  # noqa: E402
from semroute_lab.train.model import EXPERTS, HeadOutputs  # noqa: E402
from semroute_lab.train.spec import LossWeights  # noqa: E402

NAN = float("nan")


def test_soft_binary_is_the_cross_entropy_with_the_target_as_a_probability():
    # p = sigmoid(ln 3) = .75, y = .5: -(.5 ln .75 + .5 ln .25).
    found = soft_binary(torch.tensor([[math.log(3.0)]]), torch.tensor([0.5]), torch.ones(1))
    assert float(found) == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))


def test_soft_binary_weighs_rows_and_skips_unknown_targets():
    logits = torch.tensor([[0.0], [math.log(3.0)], [50.0]])
    found = soft_binary(logits, torch.tensor([1.0, 1.0, NAN]), torch.tensor([1.0, 3.0, 1.0]))
    assert float(found) == pytest.approx((math.log(2) + 3 * -math.log(0.75)) / 4)


def test_soft_binary_trains_every_member_of_an_ensemble():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    found = soft_binary(logits, torch.ones(1), torch.ones(1))
    assert float(found) == pytest.approx((math.log(2) - math.log(0.75)) / 2)


def outputs(rows, classes=2):
    """Head outputs that are all zero, with a gradient."""
    zeros = {
        "embedding": torch.zeros(rows, 4),
        "domain": torch.zeros(rows, classes, requires_grad=True),
        "members": torch.zeros(rows, EXPERTS, 2, requires_grad=True),
        "gate": torch.zeros(rows, EXPERTS),
        "task": torch.zeros(rows, classes, requires_grad=True),
        "form": torch.zeros(rows, 12),
    }
    return HeadOutputs(**zeros)


def weights(**given):
    return LossWeights(
        **({"domain": 1, "task": 0.5, "difficulty": 1, "gate": 0.3, "smoothing": 0.05} | given)
    )


def targets(rows, **given):
    nothing = {
        "domain": torch.full((rows,), IGNORE),
        "task": torch.full((rows,), IGNORE),
        "difficulty": torch.full((rows,), NAN),
        "weight": torch.ones(rows),
        "family": torch.zeros(rows, dtype=torch.long),
    }
    return Targets(**(nothing | given))


def test_a_batch_without_any_target_costs_nothing_and_has_a_gradient_of_zero():
    out = outputs(2)
    loss = multitask(out, targets(2), weights(gate=0.0))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(out.members.grad.abs().sum() + out.domain.grad.abs().sum()) == 0.0


def test_each_head_counts_by_its_weight():
    known = targets(1, domain=torch.tensor([0]), task=torch.tensor([1]), difficulty=torch.tensor([1.0]))
    found = multitask(
        outputs(1), known, weights(domain=2.0, task=0.25, difficulty=4.0, gate=0.5, smoothing=0.0)
    )
    assert float(found.detach()) == pytest.approx((2.0 + 0.25 + 4.0) * math.log(2) + 0.5 * math.log(EXPERTS))


def test_a_row_trains_the_expert_of_its_family_only():
    out = outputs(1)
    known = targets(1, difficulty=torch.tensor([1.0]), family=torch.tensor([1]))
    multitask(out, known, weights(gate=0.0)).backward()
    assert out.members.grad[0, 1].abs().min() > 0
    assert float(out.members.grad[0, 0].abs().sum() + out.members.grad[0, 2].abs().sum()) == 0.0


def test_targets_that_are_not_known_are_marked():
    row = Example("t", "s", "s:1", Rights("MIT", True), Part.FIT, domain=3)
    found = Targets.of([row])
    assert (int(found.domain), int(found.task)) == (3, IGNORE)
    assert math.isnan(float(found.difficulty))

"""The multi-task loss against hand-computed cases."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_extproc.training.datasets import Example, Part, Rights  # noqa: E402
from semroute_extproc.training.losses import IGNORE, Targets, Weights, multitask, soft_binary  # noqa: E402

NAN = float("nan")


def test_soft_binary_is_the_cross_entropy_with_the_target_as_a_probability():
    # p = sigmoid(ln 3) = .75, y = .5: -(.5 ln .75 + .5 ln .25).
    found = soft_binary(torch.tensor([math.log(3.0)]), torch.tensor([0.5]), torch.ones(1))
    assert float(found) == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))


def test_soft_binary_weighs_rows_and_skips_unknown_targets():
    logits = torch.tensor([0.0, math.log(3.0), 50.0])
    found = soft_binary(logits, torch.tensor([1.0, 1.0, NAN]), torch.tensor([1.0, 3.0, 1.0]))
    assert float(found) == pytest.approx((math.log(2) + 3 * -math.log(0.75)) / 4)


def test_soft_binary_trains_every_member_of_an_ensemble():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    found = soft_binary(logits, torch.ones(1), torch.ones(1))
    assert float(found) == pytest.approx((math.log(2) - math.log(0.75)) / 2)


def test_a_batch_without_any_target_costs_nothing_and_has_a_gradient_of_zero():
    logits = torch.ones(2, 3, requires_grad=True)
    targets = Targets(
        torch.full((2,), IGNORE), torch.full((2,), IGNORE), torch.full((2,), NAN), torch.ones(2)
    )
    loss = multitask(logits, logits.sum(1), logits, targets, Weights())
    loss.backward()
    assert float(loss) == 0.0
    assert float(logits.grad.abs().sum()) == 0.0


def test_each_head_counts_by_its_weight():
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), torch.ones(1))
    two = torch.zeros(1, 2)
    found = multitask(two, torch.zeros(1), two, targets, Weights(2.0, 0.25, 4.0, smoothing=0.0))
    assert float(found) == pytest.approx((2.0 + 0.25 + 4.0) * math.log(2))


def test_targets_that_are_not_known_are_marked():
    row = Example("t", "s", "s:1", Rights("MIT", True), Part.FIT, domain=3)
    found = Targets.of([row])
    assert (int(found.domain), int(found.task)) == (3, IGNORE)
    assert math.isnan(float(found.difficulty))

"""The multi-task loss against hand-computed cases, the fit of the heads, and fine-tuning."""

import math
import random

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import bert, fit, use  # noqa: E402
from semroute_lab.train.datasets import Example, Part, Rights  # noqa: E402
from semroute_lab.train.fit import IGNORE, QUOTA, States, Targets, multitask, soft_binary  # noqa: E402
from semroute_lab.train.frames import Frames  # noqa: E402
from semroute_lab.train.model import MEMBERS, HeadOutputs, Heads, Network  # noqa: E402
from semroute_lab.train.spec import LossWeights  # noqa: E402

from semroute_extproc.encoder.preprocess import Framed  # noqa: E402

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
        "members": torch.zeros(rows, MEMBERS, requires_grad=True),
        "gate": torch.zeros(rows, requires_grad=True),
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
        "tabled": torch.zeros(rows),
    }
    return Targets(**(nothing | given))


def test_a_batch_without_any_target_costs_nothing_and_has_a_gradient_of_zero():
    out = outputs(2)
    loss = multitask(out, targets(2), weights())
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert float(out.members.grad.abs().sum() + out.domain.grad.abs().sum()) == 0.0


def test_each_head_counts_by_its_weight():
    known = targets(1, domain=torch.tensor([0]), task=torch.tensor([1]), difficulty=torch.tensor([1.0]))
    found = multitask(outputs(1), known, weights(domain=2.0, task=0.25, difficulty=4.0, smoothing=0.0))
    assert float(found.detach()) == pytest.approx((2.0 + 0.25 + 4.0) * math.log(2))


def test_the_difficulty_trains_every_member():
    out = outputs(1)
    multitask(out, targets(1, difficulty=torch.tensor([1.0])), weights()).backward()
    assert out.members.grad.abs().min() > 0


def test_the_gate_learns_which_rows_are_of_the_table():
    out = outputs(2)
    loss = multitask(out, targets(2, tabled=torch.tensor([1.0, 0.0])), weights(gate=1.0))
    loss.backward()
    # A row of the table counts twice.
    assert float(loss.detach()) == pytest.approx((2 + 1) / 2 * math.log(2))
    assert out.gate.grad.sign().tolist() == [-1.0, 1.0]


def test_targets_that_are_not_known_are_marked():
    row = Example("t", "s", "s:1", Rights("MIT", True), Part.FIT, domain=3)
    found = Targets.of([row])
    assert (int(found.domain), int(found.task)) == (3, IGNORE)
    assert math.isnan(float(found.difficulty))


class WordFramer:
    """Frames a text by the lengths of its first words, and records the texts."""

    def __init__(self):
        self.texts = []

    def frame(self, text):
        self.texts.append(text)
        words = [5 + len(word) % 40 for word in text.split()[:12]]
        return Framed([2, *words, 3], [float(len(text))] * 12, len(words), False, 0.0)


def examples(count=40, source="s"):
    rng = random.Random(0)
    return [
        Example(
            " ".join("x" * rng.randrange(1, 9) for _ in range(rng.randrange(3, 9))) + f" {n}",
            source,
            f"s:{n}",
            Rights("MIT", True),
            Part.FIT,
            domain=n % 3,
            difficulty=(n % 2) * 0.8,
            intent=f"{source}/{n % 4}",
        )
        for n in range(count)
    ]


@pytest.fixture(params=["bert", "use"])
def network(request, tiny, use_tensors):
    """A tiny network of each architecture; the same weights in each call."""

    def made():
        torch.manual_seed(0)
        encoder = bert.Encoder(tiny) if request.param == "bert" else use.Encoder(use_tensors)
        return Network(encoder, Heads(encoder.dimensions, 12, 14, 10))

    return made


@pytest.fixture
def tune(shipped, tmp_path):
    """Fine-tune a network on rows; the tuned one, with what was said and framed."""

    def run(network, rows, epochs=2, check=None, file=tmp_path / "tune.pt"):
        plan = shipped.tune.model_copy(update={"epochs": epochs, "batch": 16, "encoder_rate": 1e-2})
        framer, said, losses = WordFramer(), [], iter(range(epochs, 0, -1))
        by_default = lambda _: float(next(losses))  # noqa: E731
        arguments = (network, rows, framer, 0, 4, check or by_default, plan, shipped.loss, 1, file)
        tuned, seconds = fit.fine_tune(*arguments, said.append)
        assert seconds > 0
        return tuned, said, framer.texts

    return run


def changed(before, after):
    """Names of the parameters that differ."""
    ours = dict(after.named_parameters())
    return {name for name, each in before.named_parameters() if not torch.equal(each, ours[name])}


def test_fine_tuning_changes_what_the_encoder_names_and_the_heads(network, tune):
    tuned, _, _ = tune(network(), examples())
    names = changed(network(), tuned)
    assert {"heads.hidden.weight", "heads.domain.weight"} <= names
    encoder = {name for name in names if name.startswith("encoder.")}
    all_of_it = {name for name, _ in network().named_parameters() if name.startswith("encoder.")}
    if hasattr(network().encoder, "layers"):
        assert encoder == {name for name in all_of_it if name.startswith("encoder.layers.")}
    else:
        assert {"encoder.lexicon.weight", "encoder.see", "encoder.enter", "encoder.dense.d3"} <= encoder


def test_each_epoch_draws_changes_and_frames_the_rows_again(network, tune):
    rows = examples()
    _, _, texts = tune(network(), rows)
    first, second = set(texts[: len(rows)]), set(texts[len(rows) :])
    own = {row.text for row in rows}
    assert len(texts) == 2 * len(rows)
    for epoch in (first, second):
        # Most rows are as they are, and some are changed.
        assert len(rows) / 3 < len(epoch & own) < len(rows)
    assert first - own != second - own


def test_at_most_the_quota_of_a_source_is_drawn_in_an_epoch(tune, tiny):
    torch.manual_seed(0)
    small = Network(bert.Encoder(tiny), Heads(8, 12, 14, 10))
    rows = [*examples(QUOTA["snips"] + 30, "snips"), *examples(25, "without a quota")]
    _, _, texts = tune(small, rows)
    assert len(texts) == 2 * (QUOTA["snips"] + 25)
    own = [row.text for row in rows]
    numbers = [{own.index(text) for text in epoch if text in own} for epoch in (texts[:425], texts[425:])]
    assert numbers[0] != numbers[1]


def test_the_epoch_with_the_lowest_loss_is_kept(network, tune):
    rows = examples()
    seen = []

    def rising(now):
        seen.append({name: each.clone() for name, each in now.named_parameters()})
        return float(len(seen))

    kept, _, _ = tune(network(), rows, 3, check=rising)
    assert len(seen) == 3
    assert all(torch.equal(each, seen[0][name]) for name, each in kept.named_parameters())


class Interrupted(Exception):
    pass


def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(network, tune, tmp_path):
    rows = examples()
    whole, _, _ = tune(network(), rows, 3, file=tmp_path / "whole.pt")
    checks = iter([3.0, None])

    def interrupted(_):
        if (loss := next(checks)) is None:
            raise Interrupted
        return loss

    with pytest.raises(Interrupted):
        tune(network(), rows, 3, check=interrupted, file=tmp_path / "parts.pt")
    losses = iter([2.0, 1.0])
    resumed, said, _ = tune(network(), rows, 3, check=lambda _: next(losses), file=tmp_path / "parts.pt")
    assert said[0] == "continuing after epoch 1 of 3"
    assert changed(whole, resumed) == set()


def states(rows, table=None):
    framer = WordFramer()
    frames = Frames.of([row.text for row in rows], framer, 0)
    pooled = torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(0))
    return States.of(rows, pooled, frames)._replace(table=table)


def test_states_are_stored_for_the_same_weights_and_ids_only(network, tmp_path):
    encoder = network().encoder
    frames = Frames.of([row.text for row in examples(5)], WordFramer(), 0)
    first = fit.embed(encoder, frames, tmp_path)
    assert torch.equal(fit.embed(encoder, frames, tmp_path), first)
    assert len(list(tmp_path.glob("states-*.pt"))) == 1
    with torch.no_grad():
        next(iter(encoder.parameters())).add_(0.5)
    assert not torch.equal(fit.embed(encoder, frames, tmp_path), first)
    assert len(list(tmp_path.glob("states-*.pt"))) == 2
    fit.embed(encoder, frames.take([0, 1]), tmp_path)
    assert len(list(tmp_path.glob("states-*.pt"))) == 3

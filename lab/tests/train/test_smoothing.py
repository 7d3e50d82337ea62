"""Smoothing: the same function, with smaller outliers where eight bits have to hold them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train.bert import Encoder, smooth  # noqa: E402
from semroute_lab.train.frames import Frames  # noqa: E402

from semroute_extproc.encoder.preprocess import Framed  # noqa: E402

FRAMES = Frames([Framed([1, 5 + n, 9 + n, 2], [0.0] * 12, 2, False, 0.0) for n in range(6)], pad_id=0)


@pytest.fixture
def encoder(tiny):
    torch.manual_seed(0)
    made = Encoder(tiny).eval()
    with torch.no_grad():
        # One channel of each layer's output is made an outlier.
        for layer in made.layers:
            layer.norm.weight[3] = 40.0
    return made


def outputs(encoder):
    ids, mask, _ = FRAMES.batch([0, 1, 2, 3, 4, 5])
    with torch.inference_mode():
        return encoder(ids, mask)


def spread(encoder):
    """How much larger than usual the largest channel is that a layer's first product reads."""
    seen = []

    def record(module, inputs):
        largest = inputs[0].abs().flatten(0, -2).amax(0)
        seen.append(float(largest.max() / largest.median()))

    hook = encoder.layers[1].query.register_forward_pre_hook(record)
    outputs(encoder)
    hook.remove()
    return seen[0]


def test_the_encoder_computes_what_it_did_before(encoder):
    before = outputs(encoder)
    smooth(encoder, FRAMES, range(6))
    assert torch.allclose(outputs(encoder), before, rtol=1e-4, atol=1e-4)


def test_an_outlier_no_longer_takes_the_whole_range(encoder):
    before = spread(encoder)
    smooth(encoder, FRAMES, range(6))
    assert spread(encoder) < before / 4

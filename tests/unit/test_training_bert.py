"""The encoder: loading a checkpoint by name, and like tokens that become one."""

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_extproc.training import bert  # noqa: E402
from semroute_extproc.training.bert import Encoder, EncoderConfig, Tokens, from_checkpoint, merged  # noqa: E402

TINY = EncoderConfig(vocabulary=50, positions=16, dimensions=8, layers=2, heads=2, inner=16)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(TINY).eval()


def merging(encoder, *above):
    """The same encoder with like tokens merged."""
    other = Encoder(dataclasses.replace(TINY, merging=above)).eval()
    other.load_state_dict(encoder.state_dict())
    return other


def _checkpoint(encoder):
    """The encoder's own tensors under the names of a published BERT."""
    names = {
        "embeddings.word_embeddings.weight": encoder.words.weight,
        "embeddings.position_embeddings.weight": encoder.places.weight,
        "embeddings.token_type_embeddings.weight": torch.stack([encoder.segment, encoder.segment + 1]),
        "embeddings.LayerNorm.weight": encoder.norm.weight,
        "embeddings.LayerNorm.bias": encoder.norm.bias,
    }
    for number, layer in enumerate(encoder.layers):
        for ours, theirs in bert._LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layer.{number}.{theirs}.{kind}"] = getattr(getattr(layer, ours), kind)
    return {name: tensor.detach().clone() for name, tensor in names.items()}


def test_a_checkpoint_loads_by_its_published_names(encoder):
    loaded = from_checkpoint(_checkpoint(encoder), TINY).eval()
    ids, mask = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    assert torch.equal(loaded(ids, mask), encoder(ids, mask))


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(encoder):
    tensors = _checkpoint(encoder)
    del tensors["encoder.layer.1.output.dense.bias"]
    with pytest.raises(KeyError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        from_checkpoint(tensors, TINY)


def tokens(*states):
    return Tokens(torch.tensor([states]), torch.ones(1, len(states)), len(states))


def test_a_token_joins_the_one_it_is_most_alike_and_the_two_are_their_mean():
    # At even places [1, 0] and [0, 1]; at odd ones something like the second, and like neither.
    found = merged(tokens([1.0, 0.0], [0.2, 2.0], [0.0, 1.0], [-1.0, -1.0]), above=0.9)
    assert found.states[0].tolist() == [[1.0, 0.0], [pytest.approx(0.1), 1.5], [-1.0, -1.0]]
    assert found.sizes[0].tolist() == [1.0, 2.0, 1.0]
    assert found.staying == 2


def test_those_that_stood_for_several_count_as_several():
    first = merged(tokens([1.0, 0.0], [1.0, 0.0], [1.0, 0.3], [-1.0, 0.0]), above=0.9)
    assert first.sizes[0].tolist() == [2.0, 1.0, 1.0]
    # Of the two that stayed the second joins the first now; what has been left alone may join as well.
    found = merged(first, above=0.9)
    assert found.sizes[0].tolist() == [3.0, 1.0]
    assert found.states[0, 0].tolist() == [pytest.approx(1.0), pytest.approx(0.1)]


def test_tokens_that_are_not_alike_enough_are_left_alone():
    found = merged(tokens([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]), above=0.1)
    assert sorted(found.states[0].tolist()) == [[-1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [1.0, 0.0]]


def test_nobody_joins_padding():
    padded = Tokens(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]), torch.tensor([[1.0, 1.0, 0.0]]), 3)
    assert merged(padded, above=0.5).sizes[0].tolist() == [1.0, 0.0, 1.0]


def test_no_token_is_lost(encoder):
    ids = torch.randint(0, 50, (3, 13))
    mask = torch.ones(3, 13)
    mask[1, 9:] = 0
    state = Tokens(encoder.words(ids), mask, 13)
    for _ in range(3):
        state = merged(state, above=0.2)
        assert state.sizes.sum(1).tolist() == [13.0, 9.0, 13.0]
    assert state.states.shape[1] < 13


def test_merging_what_is_the_same_changes_nothing_but_the_count(encoder):
    with torch.no_grad():
        encoder.places.weight.zero_()  # so that a word is the same wherever it stands
    ids = torch.tensor([[7, 7, 3, 7, 5, 3, 9, 4]])
    counts = []
    other = merging(encoder, 0.999)
    other.layers[0].register_forward_hook(lambda _, __, out: counts.append(out.states.shape[1]))
    ones = torch.ones_like(ids)
    assert torch.allclose(encoder(ids, ones), other(ids, ones), atol=1e-6)
    assert counts == [5], "three of eight say what one at an even place says"


@pytest.mark.parametrize("above", [(0.3,), (0.5, 0.2)])
def test_a_text_is_read_the_same_alone_and_among_others(encoder, above):
    subject = merging(encoder, *above)
    ids = torch.randint(0, 50, (5, 12))
    mask = torch.ones_like(ids)
    lengths = [12, 2, 7, 8, 1]
    for row, length in enumerate(lengths):
        mask[row, length:] = 0
    together = subject(ids, mask)
    for row, length in enumerate(lengths):
        alone = subject(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_an_encoder_that_merges_nothing_is_the_plain_one(encoder):
    ids = torch.randint(0, 50, (2, 9))
    ones = torch.ones_like(ids)
    assert torch.equal(merging(encoder, 1.0, 1.0)(ids, ones), copy.deepcopy(encoder)(ids, ones))

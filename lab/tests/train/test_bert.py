"""The encoder: a checkpoint is loaded by its published names."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import bert  # noqa: E402
from semroute_lab.train.bert import Encoder, EncoderConfig, from_checkpoint  # noqa: E402

TINY = EncoderConfig(vocabulary=50, positions=16, dimensions=8, layers=2, heads=2, inner=16)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(TINY).eval()


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

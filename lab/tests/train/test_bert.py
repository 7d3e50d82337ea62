"""The encoder: a checkpoint is loaded by its published names."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from safetensors.torch import save  # noqa: E402
from semroute_lab.train import bert  # noqa: E402
from semroute_lab.train.bert import Encoder, from_checkpoint  # noqa: E402


@pytest.fixture
def encoder(tiny):
    torch.manual_seed(0)
    return Encoder(tiny).eval()


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


def test_a_checkpoint_loads_by_its_published_names(encoder, tiny):
    loaded = from_checkpoint(save(_checkpoint(encoder)), tiny).eval()
    ids, mask = torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    assert torch.equal(loaded(ids, mask), encoder(ids, mask))


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(encoder, tiny):
    tensors = _checkpoint(encoder)
    del tensors["encoder.layer.1.output.dense.bias"]
    with pytest.raises(KeyError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        from_checkpoint(save(tensors), tiny)

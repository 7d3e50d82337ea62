"""The convolutional encoder: the package's function of its tensors, before anything is trained."""

from __future__ import annotations

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from semroute_lab.train import use  # noqa: E402
from semroute_lab.train.spec import Checkpoint  # noqa: E402

IDS = [1, 5, 20, 33, 7, 50, 16, 2]
PARTS = 17
"""Row i of the table is row i // 17 of chunk i % 17 + 1."""


@pytest.fixture
def encoder(use_tensors):
    torch.manual_seed(0)
    return use.Encoder(use_tensors).eval()


@pytest.fixture
def tokenizer(sentencepiece):
    return use.tokenizer(Checkpoint(b"", sentencepiece))


def normalized(x, gain, bias):
    return (x - x.mean()) / np.sqrt(x.var()) * gain + bias


def base_output(tensors, ids):
    """The published forward pass of one text, token by token in double precision."""
    t = {name: np.asarray(values, dtype=np.float64) for name, values in tensors.items()}
    words = [t[f"q{i % PARTS + 1}"][i // PARTS] * t["scale"][i % PARTS] + t["lo"][i % PARTS] for i in ids]
    sizes = (2, 3, 5)
    entered = []
    for word in words:
        wide = np.concatenate([word @ t[f"proj{n}"] + t[f"proj_b{n}"] for n in sizes])
        gain, bias = (np.concatenate([t[f"ln_{kind}{n}"] for n in sizes]) for kind in "gb")
        entered.append(np.split(normalized(wide, gain, bias), 3))
    columns = [words]
    for branch, (size, before) in enumerate(((2, 0), (3, 1), (5, 2))):
        h = [token[branch] for token in entered]
        for layer in (1, 2):
            nothing = np.zeros_like(h[0])
            around = [nothing] * before + h + [nothing] * size
            grams = [np.concatenate(around[at : at + size]) for at in range(len(h))]
            weight, bias = t[f"w{layer}_{size}"], t[f"b{layer}_{size}"]
            h = [np.maximum(gram @ weight + bias, 0.0) + own for gram, own in zip(grams, h, strict=True)]
        columns.append(h)
    states = [normalized(np.concatenate(parts), t["ln_g"], t["ln_b"]) for parts in zip(*columns, strict=True)]
    mean = sum(state @ t["cnn_W"] + t["cnn_b"] for state in states) / np.sqrt(len(states))
    hidden = np.maximum(mean @ t["p1"] + np.maximum(mean @ t["d0"], 0.0) @ t["d1"], 0.0)
    return np.tanh(hidden @ t["p3"] + np.maximum(hidden @ t["d2"], 0.0) @ t["d3"])


def output(encoder, *texts):
    """The encoder's outputs for a batch, padded to the longest text."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[use.UNK] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    with torch.inference_mode():
        return encoder(ids, mask).numpy()


@pytest.mark.parametrize("length", [1, 2, 3, 5, len(IDS)])
def test_a_fresh_encoder_computes_what_the_package_does(encoder, use_tensors, length):
    found = output(encoder, IDS[:length])[0]
    assert np.abs(found).max() > 0.1
    assert np.allclose(found, base_output(use_tensors, IDS[:length]), atol=1e-5)


def test_the_table_of_embeddings_stays_in_bytes_and_out_of_the_trained_state(encoder):
    assert encoder.table.dtype == torch.uint8
    assert not {"table", "step", "offset"} & set(encoder.state_dict())


def test_training_leaves_the_arrays_of_the_checkpoint_alone(encoder, use_tensors):
    before = {name: np.array(values) for name, values in use_tensors.items()}
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(use_tensors[name], values) for name, values in before.items())


@pytest.fixture
def tuned(encoder):
    """The encoder with added parts that are no longer zero."""
    with torch.no_grad():
        encoder.add.weight.normal_(std=0.3)
        encoder.add.bias.normal_(std=0.3)
        encoder.lexicon.weight.normal_()
    return encoder


def test_padding_changes_nothing(tuned):
    short, long = IDS[:3], IDS
    together = output(tuned, short, long)
    assert np.allclose(together[0], output(tuned, short)[0], atol=1e-5)
    assert np.allclose(together[1], output(tuned, long)[0], atol=1e-5)


def test_the_weighted_means_and_the_lexicon_add_to_the_output(encoder, use_tensors):
    with torch.no_grad():
        encoder.add.weight.normal_(std=0.3)
    before = output(encoder, IDS)
    assert np.abs(before[0] - base_output(use_tensors, IDS)).max() > 0.01
    with torch.no_grad():
        encoder.lexicon.weight[IDS[3]] += 1.0
    assert np.abs(output(encoder, IDS) - before).max() > 1e-3


def test_the_lexicon_learns_faster_than_the_rest_and_every_parameter_has_a_rate(encoder, shipped):
    plan = shipped.tune
    rest, lexicon = encoder.groups(plan)
    assert rest["lr"] == plan.encoder_rate
    assert lexicon == {"params": [encoder.lexicon.weight], "lr": use.LEXICON_SPEED * plan.encoder_rate}
    assert len(rest["params"]) + 1 == len(list(encoder.parameters()))


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(use_tensors):
    stream = io.BytesIO()
    np.savez(stream, **{name: values for name, values in use_tensors.items() if name != "w2_5"})
    with pytest.raises(KeyError, match="w2_5"):
        use.from_checkpoint(Checkpoint(stream.getvalue(), b""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the court", ["▁the", "▁court"]),
        # The sum of the scores counts: "co" and "urt" have -5, "cou" and "rt" -12.5.
        ("what 1court", ["▁what", "▁", "1", "co", "urt"]),
        ("  what   is ", ["▁what", "▁is"]),
        # The model's own normalizer: this one turns A into a.
        ("whAt", ["▁what"]),
        # Characters that the vocabulary does not have are one unknown token.
        ("tax ßß 7", ["▁tax", "▁", "<unk>", "▁", "7"]),
    ],
)
def test_a_text_is_split_into_the_most_probable_pieces(tokenizer, pieces, text, expected):
    assert tokenizer.encode(text, add_special_tokens=False).ids == [pieces[piece] for piece in expected]


def test_the_special_pieces_have_the_ids_that_the_encoder_expects(tokenizer):
    names = ("<unk>", "<s>", "</s>")
    assert tuple(map(tokenizer.token_to_id, names)) == (use.UNK, use.BOS, use.EOS)

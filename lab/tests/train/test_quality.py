"""Quality functions against hand-made cases, BARTScore against its formula on a tiny random model."""

import math

import pytest
from semroute_lab.train import quality


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1.0),
        ("  an  apple ", "apple", 1.0),
        ("-1.5", "15", 0.0),
        ("1.5", "15", 0.0),
        ("50%", "50", 0.0),
        ("Paris", "London", 0.0),
        ("", "London", 0.0),
    ],
)
def test_exact_ignores_case_articles_punctuation_and_spaces_but_not_signs(answer, reference, expected):
    assert quality.exact(answer, reference) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("4 + 4 = 8, so she pays $1,208.", "#### 1208", 1.0),
        ("It is -3", "3", 0.0),
        ("2.50", "2.5", 1.0),
        ("no idea", "3", 0.0),
        ("3", "nothing", 0.0),
    ],
)
def test_exact_number_compares_the_last_numbers(answer, reference, expected):
    assert quality.exact_number(answer, reference) == expected


def test_a_scale_maps_to_the_unit_interval():
    assert [quality.scaled(grade, 1, 10) for grade in (1, 5.5, 10)] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="not on the scale 1 to 2"):
        quality.scaled(0.5, 1, 2)


@pytest.fixture(scope="module")
def bart():
    torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=30,
        max_position_embeddings=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    return transformers.BartForConditionalGeneration(config).eval()


class Letters:
    """A tokenizer of lower-case letters: a is 3, b is 4, …; 2 ends a text, 0 pads."""

    def __call__(self, texts, **_):
        import torch

        ids = [[ord(letter) - 94 for letter in text] + [2] for text in texts]
        longest = max(map(len, ids))
        return {
            "input_ids": torch.tensor([own + [0] * (longest - len(own)) for own in ids]),
            "attention_mask": torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in ids]),
        }


def test_bart_score_is_the_mean_log_probability_of_the_targets_tokens(bart):
    import torch

    found = quality.BartScore(bart, Letters())(["abc"], ["de"])[0]
    source, target = torch.tensor([[3, 4, 5, 2]]), [6, 7, 2]
    expected = 0.0
    for t in range(3):
        before = torch.tensor([[2, *target[:t]]])
        with torch.inference_mode():
            logits = bart(input_ids=source, decoder_input_ids=before).logits[0, -1]
        expected += math.log(float(logits.softmax(-1)[target[t]]))
    assert found == pytest.approx(expected / 3, abs=1e-5)


def test_bart_score_of_a_pair_does_not_depend_on_its_neighbors(bart):
    score = quality.BartScore(bart, Letters())
    together = score(["abc", "a"], ["d", "defgh"])
    assert together == pytest.approx([score(["abc"], ["d"])[0], score(["a"], ["defgh"])[0]], abs=1e-5)


def test_bart_score_refuses_lists_of_different_length(bart):
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        quality.BartScore(bart, Letters())(["a", "b"], ["c"])

"""From an answer to its quality: what `outcome.<model>` of a log is filled with.

exact       is it the reference answer?            0 or 1
graded      a judge's grade on a scale             0..1
preference  a judgement against another answer     0..1
BARTScore   log-likelihood under a seq2seq model   <= 0, see `BartScore`
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

BATCH = 8
"""Pairs of texts scored in one pass."""

TOKENS_MAX = 1024
"""Longer texts are cut on the right; BART has this many positions."""

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s.%-]|(?<!\d)\.|\.(?!\d)|(?<!\w)-(?!\d)")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def exact(answer: str, reference: str) -> float:
    """1 if both are the same after case, articles, punctuation and white space are taken out, else 0.

    The normalisation of SQuAD's exact match (Rajpurkar et al. 2016); signs, decimal points and
    percent signs stay, for `-1.5` is not `15`.
    """
    return float(normalised(answer) == normalised(reference))


def normalised(text: str) -> str:
    """The form in which `exact` compares answers."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_ARTICLE.sub(" ", _PUNCTUATION.sub(" ", plain)).split())


def exact_number(answer: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 if the last number of `answer` equals that of `reference`, else 0.

    How GSM8K is scored (Cobbe et al. 2021): the last number of a worked answer is its result.
    """
    found = [_NUMBER.findall(text) for text in (answer, reference)]
    if not all(found):
        return 0.0
    said, meant = (float(numbers[-1].replace(",", "")) for numbers in found)
    return float(math.isclose(said, meant, rel_tol=tolerance, abs_tol=tolerance))


def graded(grade: float, low: float = 1.0, high: float = 10.0) -> float:
    """A grade on a scale (MT-Bench: 1 to 10, Zheng et al. 2023) as a quality in 0..1; ValueError outside."""
    if not low <= grade <= high:
        raise ValueError(f"the grade {grade:g} is not on the scale {low:g} to {high:g}")
    return (grade - low) / (high - low)


def preference(value: float) -> float:
    """AlpacaEval's preference, 1 (the reference is better) to 2 (the answer is), as 0..1; ValueError outside.

    Dubois et al. 2024: the expected preference of the judge, between the two orders of the answers.
    """
    return graded(value, 1.0, 2.0)


class BartScore:
    """BARTScore (Yuan et al. 2021, equation 2 with equal weights): how likely one text makes another.

    score(source, target) = (1 / m) sum_t log p(target_t | target_<t, source), in nats a token, <= 0.
    Hybrid LLM (arXiv 2404.14618) takes q(answer) = score(query, answer) with a BART of large size.
    Scores of one model compare with each other only: feed `labels.r_trans` with them as they are.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str = "cpu") -> None:
        """A transformers seq2seq model and its tokenizer, as objects; see `load_bart_score`."""
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._device = device

    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """One score a pair, in order; ValueError if the lists differ in length."""
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets")
        found: list[float] = []
        for start in range(0, len(sources), BATCH):
            found += self._batch(list(sources[start : start + BATCH]), list(targets[start : start + BATCH]))
        return found

    def _batch(self, sources: list[str], targets: list[str]) -> list[float]:
        import torch

        given, said = (self._tokens(texts) for texts in (sources, targets))
        pad = self._model.config.pad_token_id
        labels = said["input_ids"].masked_fill(said["attention_mask"] == 0, -100)
        with torch.inference_mode():
            logits = self._model(**given, labels=labels).logits
        chosen = labels.masked_fill(labels == -100, pad if pad is not None else 0)[..., None]
        log_p = logits.float().log_softmax(-1).gather(-1, chosen)[..., 0]
        mask = (labels != -100).float()
        scores: list[float] = ((log_p * mask).sum(1) / mask.sum(1).clamp(min=1.0)).tolist()
        return scores

    def _tokens(self, texts: list[str]) -> Any:
        encoded = self._tokenizer(
            texts, return_tensors="pt", padding=True, truncation=True, max_length=TOKENS_MAX
        )
        return {name: encoded[name].to(self._device) for name in ("input_ids", "attention_mask")}


def load_bart_score(path: str, device: str = "cpu") -> BartScore:
    """BARTScore with the checkpoint at `path` (a name or a folder); needs the package transformers."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    return BartScore(AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path), device)

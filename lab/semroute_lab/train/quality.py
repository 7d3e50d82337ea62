"""From an answer to its quality: the measures of `semroute train --quality`.

given       `outcome.<model>`     a quality 0..1 as it is
graded      `grade.<model>`       a judge's grade 1..10 (MT-Bench, Zheng et al. 2023) as 0..1
preference  `preference.<model>`  a judge's preference over a reference answer, 1..2 (AlpacaEval,
                                  Dubois et al. 2024) as 0..1
exact       `answer.<model>`      is it the reference answer? 0 or 1
number      `answer.<model>`      is its last number that of the reference answer? 0 or 1
bartscore   `answer.<model>`      log-likelihood under a seq2seq model, <= 0; see `BartScore`
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCALES = {
    "given": ("outcome.", 0.0, 1.0),
    "graded": ("grade.", 1.0, 10.0),
    "preference": ("preference.", 1.0, 2.0),
}
"""Measures of a number: start of the column's name, and the ends of the scale."""

ANSWER = "answer."  # Start of the name of a column of answers
BATCH = 8  # Pairs of texts scored in one pass
TOKENS_MAX = 1024  # Longer texts are cut on the right; BART has this many positions
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s.%-]|(?<!\d)\.|\.(?!\d)|(?<!\w)-(?!\d)")
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def exact(answer: str, reference: str) -> float:
    """1 if both are equal without case, articles, punctuation and white space, else 0.
    The normalisation of SQuAD's exact match (Rajpurkar et al. 2016); signs, decimal points and percent signs
    stay, so `-1.5` is not `15`.
    """
    return float(_normalized(answer) == _normalized(reference))


def _normalized(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_ARTICLE.sub(" ", _PUNCTUATION.sub(" ", plain)).split())


def exact_number(answer: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 if the last number of `answer` equals that of `reference`, else 0 (GSM8K, Cobbe et al. 2021)."""
    found = [_NUMBER.findall(text) for text in (answer, reference)]
    if not all(found):
        return 0.0
    given, expected = (float(numbers[-1].replace(",", "")) for numbers in found)
    return float(math.isclose(given, expected, rel_tol=tolerance, abs_tol=tolerance))


COMPARISONS: dict[str, Callable[[str, str], float]] = {"exact": exact, "number": exact_number}
"""Measures of an answer against the reference answer."""

KINDS = (*SCALES, *COMPARISONS, "bartscore")
START = dict.fromkeys(KINDS, ANSWER) | {kind: scale[0] for kind, scale in SCALES.items()}
"""Measure to the start of the names of the columns that it reads."""


def scaled(value: float, low: float, high: float) -> float:
    """A value on the scale `low` to `high` as a quality in 0..1; ValueError outside."""
    if not low <= value <= high:
        raise ValueError(f"{value:g} is not on the scale {low:g} to {high:g}")
    return (value - low) / (high - low)


class BartScore:
    """BARTScore (Yuan et al. 2021, equation 2 with equal weights).
    score(source, target) = (1 / m) sum_t log p(target_t | target_<t, source), in nats per token, <= 0.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """A transformers seq2seq model and its tokenizer; see `load_bart_score`."""
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._tokens_max = min(TOKENS_MAX, getattr(model.config, "max_position_embeddings", TOKENS_MAX))

    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """One score per pair, in order; ValueError if the lists differ in length."""
        import torch

        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets")
        found: list[float] = []
        for start in range(0, len(sources), BATCH):
            batch = slice(start, start + BATCH)
            given, target = self._tokens(sources[batch]), self._tokens(targets[batch])
            labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)
            with torch.inference_mode():
                logits = self._model(**given, labels=labels).logits
            log_p = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            mask = (labels != -100).float()
            found += ((log_p * mask).sum(1) / mask.sum(1).clamp(min=1.0)).tolist()
        return found

    def _tokens(self, texts: Sequence[str]) -> dict[str, Any]:
        shape = {"padding": True, "truncation": True, "max_length": self._tokens_max}
        encoded = self._tokenizer(list(texts), return_tensors="pt", **shape)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@functools.lru_cache(maxsize=1)
def load_bart_score(directory: Path) -> BartScore:
    """BARTScore with the checkpoint in `directory`; needs the package transformers, downloads nothing."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(directory, local_files_only=True)
    return BartScore(model, AutoTokenizer.from_pretrained(directory, local_files_only=True))

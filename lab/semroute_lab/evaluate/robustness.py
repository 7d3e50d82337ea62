"""`eval robustness`: how often a decision flips when the prompt changes but the task does not.

A decision is the predicted domain, and whether the difficulty reaches the threshold. The baseline of every
row is a router by prompt length with the same strong share. `noise` and `paraphrase` keep
the question, `appended` adds unrelated text, `easy` tries to get the weak model for a hard prompt, `hard`
the strong one for any prompt.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semroute_lab.common import metrics
from semroute_lab.common.metrics import Booleans, Estimate, Floats, estimate
from semroute_lab.common.tables import Table, require_rows
from semroute_lab.evaluate.scoring import Report, Source, head

TYPO_SHARE = 0.1  # Share of the longer words that get a typing error
TYPO_LETTERS_MIN = 4  # Shorter words are left alone: an error would turn them into another word
RARE_TOKENS = 12  # Words in an appended string of rare tokens

_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("perturbations.json").read_text(encoding="utf-8"))
_NEIGHBOURS = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}
_WORD = re.compile(r"[A-Za-z]+")
_OPTION = re.compile(r"^(\s*\(?[A-J][.):]\s+)(.*)$", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

Change = Callable[[str, random.Random], str]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One way to change a text."""

    name: str
    group: str  # noise, paraphrase, appended, easy or hard
    about: str
    apply: Change


def typos(text: str, rng: random.Random) -> str:
    """Swap, drop, double or mistype one letter in a share of the longer words; first letters stay."""

    def mistype(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < TYPO_LETTERS_MIN or rng.random() >= TYPO_SHARE:
            return word
        i = rng.randrange(1, len(word) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        if kind == 1:
            return word[:i] + word[i + 1 :]
        other = word[i] + word[i] if kind == 2 else rng.choice(_NEIGHBOURS[word[i].lower()])
        return word[:i] + other + word[i + 1 :]

    return _WORD.sub(mistype, text)


def contract(text: str, rng: random.Random) -> str:
    """Write long forms short, or if there are none, short forms long."""
    pairs: dict[str, str] = _DATA["contractions"]
    shortened = _replace(text, pairs)
    return shortened if shortened != text else _replace(text, {v: k for k, v in pairs.items()})


def _replace(text: str, pairs: dict[str, str]) -> str:
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, pairs)) + r")\b", re.IGNORECASE)

    def swap(match: re.Match[str]) -> str:
        new = pairs[match[0].lower()]
        return new.capitalize() if match[0][0].isupper() else new

    return pattern.sub(swap, text)


def reorder(text: str, rng: random.Random) -> str:
    """Options in another order under the same letters; without options, the last sentence first."""
    options = [match[2] for match in _OPTION.finditer(text)]
    if len(options) > 1:
        shuffled = options[:]
        while shuffled == options and len(set(options)) > 1:
            rng.shuffle(shuffled)
        remaining = iter(shuffled)
        return _OPTION.sub(lambda match: match[1] + next(remaining), text)
    sentences = _SENTENCE.split(text.strip())
    return " ".join([sentences[-1], *sentences[:-1]]) if len(sentences) > 1 else text


def unpunctuated(text: str, rng: random.Random) -> str:
    """Without punctuation at the end of words, as people type in a hurry."""
    return re.sub(r"[.,;:!?]+(?=\s|$)", "", text)


def rare_tokens(text: str, rng: random.Random) -> str:
    """The text, then a string of improbable words."""
    letters = "bcdfghjklmnpqrstvwxz"
    words = ("".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(RARE_TOKENS))
    return text + "\n\n" + " ".join(words)


def _around(before: Sequence[str], after: Sequence[str]) -> Change:
    def put(text: str, rng: random.Random) -> str:
        return (rng.choice(before) if before else "") + text + (rng.choice(after) if after else "")

    return put


_FUNCTIONS: dict[str, Change] = {
    "typos": typos,
    "lower case": lambda text, rng: text.lower(),
    "upper case": lambda text, rng: text.upper(),
    "no punctuation": unpunctuated,
    "respaced": lambda text, rng: " ".join(text.split()),
    "contractions": contract,
    "reordered": reorder,
    "rare tokens": rare_tokens,
}


def _perturbation(name: str, group: str, about: str, before: Any = (), after: Any = ()) -> Perturbation:
    return Perturbation(name, group, about, _FUNCTIONS.get(name) or _around(before, after))


PERTURBATIONS = tuple(_perturbation(**one) for one in _DATA["perturbations"])  # In the order of the report


def perturb(one: Perturbation, texts: list[str], seed: int) -> list[str]:
    """Every text, perturbed; the change depends only on its index, the perturbation and the seed."""
    return [one.apply(text, random.Random(f"{seed}/{one.name}/{row}")) for row, text in enumerate(texts)]


def sample(table: Table, limit: int, seed: int) -> Table:
    """At most `limit` rows, drawn by `seed`, in the file's order."""
    require_rows(table)
    if len(table) <= limit:
        return table
    drawn = set(np.random.default_rng(seed).choice(len(table), size=limit, replace=False).tolist())
    return table.where(row in drawn for row in range(len(table)))


def evaluate_robustness(
    table: Table,
    texts: list[str],
    source: Source,
    *,
    seed: int,
    replicates: int,
    strong_share: float,
    threshold: float | None,
) -> Report:
    """The report of `eval robustness`; its shape is documented in `reports.md`."""
    changed = [perturb(one, texts, seed) for one in PERTURBATIONS]
    # One pass over everything: texts that a perturbation leaves alone are scored once.
    scores = source.score([text for group in (texts, *changed) for text in group])
    count = len(texts)
    clean = scores.take(range(count))
    cut = threshold if threshold is not None else float(np.quantile(clean.difficulty, 1.0 - strong_share))
    length = np.asarray([len(text) for text in texts])
    length_cut = float(np.quantile(length, 1.0 - strong_share))
    before, everything = clean.difficulty >= cut, np.ones(count, dtype=bool)

    def share(event: Booleans, among: Booleans = everything) -> Estimate | None:
        return _share(event, among, seed, replicates)

    rows: list[Report] = []
    for i, (one, other_texts) in enumerate(zip(PERTURBATIONS, changed, strict=True), start=1):
        other = scores.take(range(i * count, (i + 1) * count))
        after = other.difficulty >= cut
        domain = np.argmax(clean.domain, axis=1) != np.argmax(other.domain, axis=1)
        longer = np.asarray([len(text) >= length_cut for text in other_texts])
        found = {
            "domain_flip": share(domain),
            "difficulty_flip": share(before != after),
            "hard_to_easy": share(before & ~after, before),
            "easy_to_hard": share(after & ~before, ~before),
            "strong_share": float(after.mean()),
            "mean_shift": float(np.mean(other.difficulty - clean.difficulty)),
            "spearman": metrics.spearman(clean.difficulty, other.difficulty),
            "changed": float(np.mean([a != b for a, b in zip(texts, other_texts, strict=True)])),
            "length_flip": share((length >= length_cut) != longer),
        }
        rows.append({"name": one.name, "group": one.group, "about": one.about, **found})
    return {
        **head("robustness", table, source.describe(), seed),
        "bootstrap": replicates,
        "threshold": cut,
        "strong_share": float(np.mean(before)),
        "perturbations": rows,
    }


def _share(event: Booleans, among: Booleans, seed: int, replicates: int) -> Estimate | None:
    """Share of `among` that is `event`, with its interval; None where `among` is empty."""
    if not among.any():
        return None
    hits, rows = (event & among).astype(np.float64), among.astype(np.float64)

    def shares(counts: Floats) -> Floats:
        drawn = counts @ rows
        return np.divide(counts @ hits, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0)

    return estimate(float(hits.sum() / rows.sum()), metrics.bootstrap(shares, event.size, replicates, seed))

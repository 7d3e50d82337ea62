"""`eval robustness`: how often a decision flips when the prompt changes but the task does not.

A decision is made as in the server: strong if the difficulty of the classified text reaches the threshold or
the text is unknown. The baseline of every row is a router by prompt length with the same strong share.
`noise` and `paraphrase` keep the question, `appended` adds unrelated text, `easy` tries to get the weak model
for a hard prompt, `hard` the strong one for any prompt. An `envelope` is a request body that a client puts
around the prompt; in `housekeeping` the task is another one, and the prompt is only its material.
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

from semroute_extproc.state.live import threshold_for_share
from semroute_lab.common import metrics
from semroute_lab.common.tables import Table, require_rows
from semroute_lab.evaluate.scoring import PERCENTILES, SHARE, Report, Source, head, judged

TYPO_SHARE = 0.1  # Share of the longer words that get a typing error
TYPO_LETTERS_MIN = 4  # Shorter words are left alone: an error would turn them into another word
RARE_TOKENS = 12  # Words in an appended string of rare tokens

_DATA: dict[str, Any] = json.loads(Path(__file__).with_name("perturbations.json").read_text(encoding="utf-8"))
_NEIGHBORS = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, letter in enumerate(row)
}
_WORD = re.compile(r"[A-Za-z]+")
_OPTION = re.compile(r"^(\s*\(?[A-J][.):]\s+)(.*)$", re.MULTILINE)
_PLACE = re.compile(r"\{(?:prompt|quoted)\}")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

Change = Callable[[str, random.Random], str]


PLAIN_BODY = {"messages": [{"role": "user", "content": "{prompt}"}]}


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One way to change a prompt."""

    name: str
    group: str  # noise, paraphrase, appended, easy, hard, envelope or housekeeping
    about: str
    apply: Change
    body: str  # JSON of the request, with `{prompt}` in strings, or `{quoted}` in a string of JSON

    def request(self, text: str, rng: random.Random) -> Any:
        """The body of the request with the changed prompt."""
        inside = json.dumps(self.apply(text, rng))[1:-1]
        forms = {"{prompt}": inside, "{quoted}": json.dumps(inside)[1:-1]}
        return json.loads(_PLACE.sub(lambda match: forms[match[0]], self.body))


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
        other = word[i] + word[i] if kind == 2 else rng.choice(_NEIGHBORS[word[i].lower()])
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
    """Without punctuation at the end of words, as people type in a hurry; text of nothing else is kept."""
    bare = re.sub(r"[.,;:!?]+(?=\s|$)", "", text)
    return bare if bare.strip() else text


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


def _perturbation(
    name: str, group: str, about: str, before: Any = (), after: Any = (), body: Any = None
) -> Perturbation:
    change = _FUNCTIONS.get(name) or _around(before, after)
    return Perturbation(name, group, about, change, json.dumps(body or PLAIN_BODY))


UNCHANGED = _perturbation("unchanged", "none", "the prompt as it is")
PERTURBATIONS = tuple(_perturbation(**one) for one in _DATA["perturbations"])  # In the order of the report


def perturb(one: Perturbation, texts: Sequence[str], seed: int) -> list[Any]:
    """The request body of every changed prompt; it depends only on its row, `one` and the seed."""
    return [one.request(text, random.Random(f"{seed}/{one.name}/{row}")) for row, text in enumerate(texts)]


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
    share: float = SHARE,
    threshold: float | None = None,
) -> Report:
    """The report of `eval robustness`; its shape is documented in `reports.md`."""
    cut = threshold_for_share(source.quantiles, share) if threshold is None else threshold
    hard = table.numbers_in("hard", 0, 1, blank=True) if table.has("hard") else np.full(len(table), np.nan)
    everything = (UNCHANGED, *PERTURBATIONS)
    changed = [judged(table, (("text", body) for body in perturb(one, texts, seed))) for one in everything]
    # One pass over everything: identical texts are scored once.
    scores = source.score([text for group in changed for text in group])
    sent = (scores.unknown | (scores.difficulty >= cut)).reshape(len(everything), -1)
    domain = np.argmax(scores.domain, axis=1).reshape(sent.shape)
    difficulty = scores.difficulty.reshape(sent.shape)
    lengths = np.asarray([[float(len(text)) for text in group] for group in changed])
    share_before = float(sent[0].mean())
    longest = lengths >= threshold_for_share(np.quantile(lengths[0], PERCENTILES), share_before)
    labeled = np.isfinite(hard)
    rows: list[Report] = []
    for i, one in enumerate(everything):
        figures = {
            "changed": [a != b for a, b in zip(changed[0], changed[i], strict=True)],
            "same_domain": domain[0] == domain[i],
            "same_decision": sent[0] == sent[i],
            "hard_to_easy": np.where(sent[0], ~sent[i], np.nan),
            "easy_to_hard": np.where(sent[0], np.nan, sent[i]),
            "length_same_decision": longest[0] == longest[i],
            "strong_share": sent[i],
            "mean_shift": difficulty[i] - difficulty[0],
            "hard_strong": np.where(hard > 0.5, sent[i], np.nan),
            "easy_strong": np.where(hard <= 0.5, sent[i], np.nan),
        }
        area = (difficulty[i][labeled], hard[labeled] > 0.5, replicates, seed)
        found = {
            **metrics.means(figures, replicates, seed),
            "spearman": metrics.spearman(difficulty[0], difficulty[i]),
            "auroc": metrics.auroc_estimate(*area) if labeled.any() else None,
        }
        rows.append({"name": one.name, "group": one.group, "about": one.about, **found})
    return {
        **head("robustness", table, source.describe(), seed),
        "bootstrap": replicates,
        "threshold": cut,
        "strong_share": share_before,
        "perturbations": rows,
    }

"""Fit `semroute_extproc/request/tokens.json` to real tokenizers, and print the errors by kind of text.

    python tools/fit_tokens.py --texts FOLDER qwen3=PATH/tokenizer.json llama3=PATH/tokenizer.json …

FOLDER has one KIND.json per kind of text, a JSON array of texts. The first tokenizer is the likely one.
Errors are of texts that were not fitted: one in four, of every kind. The weights are then fitted to all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import click
import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls
from tokenizers import Tokenizer

from semroute_extproc.request.tokens import CLASSES_MAX, DATA, RUN, class_pairs

# Letters first: `class_pairs` compares.
GROUPS = (
    *"abcdefghijklmnopqrstuvwxyz",
    *("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789", " ", "\n\r", "\t", "-=_*#~", ".,", ":;", "\"'`"),
    *("()[]{}<>", "/\\", "|"),
)
# Bytes of UTF-8 at which a class begins. Before 0xC0 they continue a character: the second byte tells the
# Indic scripts apart. From there on they begin one, of a script or a few.
BOUNDS = (
    *(0x80, 0x90, 0xA0, 0xA4, 0xA6, 0xA8, 0xAE, 0xB0, 0xB4, 0xB8, 0xBC),
    *(0xC0, 0xC4, 0xCE, 0xD0, 0xD4, 0xD8, 0xE0, 0xE1, 0xE2, 0xE3, 0xE4, 0xEA, 0xEE, 0xF0),
)
UNIT = 1000  # weights are stored as integers, in thousandths of a token
TEXT_CHARACTERS = 2_500
TEXTS_MAX = 40  # of one kind
SEEN_MIN = 12  # texts that a pair must be in to get a weight of its own
UNSEEN = (250, 500, 1000)  # the weights of any other pair
RUN_WEIGHTS = (125, 160, 500)  # of `RUN`, measured: eight, six or two letters are one token
RIDGE = 3e-7
COMMON, COMMON_WEIGHT, RARE, RARE_WEIGHT = ("prose-en", "code", "chat-en"), 2.5, "po-", 0.5


def classes() -> list[list[int]]:
    """The bytes of each class."""
    listed = [[ord(character) for character in group] for group in GROUPS]
    other = [byte for byte in range(BOUNDS[0]) if not any(byte in group for group in listed)]
    ends = [*BOUNDS[1:], 256]
    found = [*listed, other, *(list(range(*each)) for each in zip(BOUNDS, ends, strict=True))]
    assert len(found) <= CLASSES_MAX
    return found


def read(folder: Path) -> tuple[list[str], np.ndarray]:
    """Texts of about `TEXT_CHARACTERS` and their kinds."""
    texts: list[str] = []
    kinds: list[str] = []
    for file in sorted(folder.glob("*.json")):
        each = json.loads(file.read_text())
        starts = ((text, at) for text in each for at in range(0, len(text), TEXT_CHARACTERS))
        cut = [text[at : at + TEXT_CHARACTERS] for text, at in starts]
        cut = [text for text in cut if len(text) > TEXT_CHARACTERS // 2]
        np.random.default_rng(0).shuffle(cut)
        texts += cut[:TEXTS_MAX]
        kinds += [file.stem] * len(cut[:TEXTS_MAX])
    return texts, np.array(kinds)


def fit(counts: np.ndarray, tokens: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights of pairs, not negative, with the least squares of the relative error."""
    scaled = counts / tokens[:, None] * weight[:, None]
    gram = scaled.T @ scaled
    gram += np.eye(len(gram)) * (RIDGE * len(tokens) * gram.diagonal().mean() + 1e-9)
    upper = cholesky(gram)
    return nnls(upper, solve_triangular(upper.T, scaled.T @ weight, lower=True), maxiter=100_000)[0]


def main() -> None:
    """Fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("tokenizers", nargs="+", metavar="NAME=PATH")
    arguments = parser.parse_args()
    texts, kinds = read(arguments.texts)
    named = dict(each.split("=", 1) for each in arguments.tokenizers)
    counted = {name: _count(Tokenizer.from_file(path), texts) for name, path in named.items()}
    groups = classes()
    table = bytes(next(i for i, group in enumerate(groups) if byte in group) for byte in range(256))
    pairs = (class_pairs(text.encode(), table) for text in texts)
    counts = np.array([np.bincount(each, minlength=CLASSES_MAX**2) for each in pairs], float)
    used = np.flatnonzero((counts > 0).sum(0) >= SEEN_MIN)
    used = used[used != RUN]
    counts, unseen = counts[:, used], counts.sum(1) - counts[:, used].sum(1)
    weight = np.array([1.0 / np.sqrt((kinds == kind).sum()) for kind in kinds])
    weight *= [
        COMMON_WEIGHT if k.startswith(COMMON) else RARE_WEIGHT if k.startswith(RARE) else 1.0 for k in kinds
    ]
    weight /= weight.mean()
    every = np.array(list(counted.values()))
    targets = (every.min(0), every[0], every.max(0))
    held = np.arange(len(texts)) % 4 == 0
    guessed = np.array([counts @ fit(counts[~held], each[~held], weight[~held]) for each in targets])
    guessed += np.array(UNSEEN)[:, None] / UNIT * unseen
    _report(kinds, held, guessed, counted)
    fitted = np.rint(np.array([fit(counts, each, weight) for each in targets]) * UNIT).astype(int)
    rows = [
        [*divmod(int(pair), CLASSES_MAX), *column]
        for pair, column in zip(used, fitted.T.tolist(), strict=True)
    ]
    rows.append([*divmod(RUN, CLASSES_MAX), *RUN_WEIGHTS])
    data = {"tokenizers": list(named), "unit": UNIT, "unseen": UNSEEN, "classes": groups, "weights": rows}
    DATA.write_text(json.dumps(data, separators=(",", ":")).replace("],[", "],\n[") + "\n")


def _count(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return np.array([len(each.ids) for each in encoded], float)


def _report(kinds: np.ndarray, held: np.ndarray, guessed: np.ndarray, counted: dict[str, np.ndarray]) -> None:
    """Mean and largest absolute error of `likely` for the first tokenizer; worst ratios of the bounds."""
    first, every = next(iter(counted.values())), np.array(list(counted.values()))
    for kind in sorted(set(kinds)):
        at = held & (kinds == kind)
        if not at.any():
            continue
        error = np.abs(guessed[1, at] / first[at] - 1)
        low, high = (guessed[0, at] / every[:, at]).max(), (guessed[2, at] / every[:, at]).min()
        numbers = f"{error.mean():.3f} {error.max():.3f} {low:.2f} {high:.2f}"
        click.echo(f"{kind:16} {at.sum():3} {numbers}")
    error = np.abs(guessed[1, held] / first[held] - 1)
    click.echo(
        f"mean {error.mean():.3f}, 95th percentile {np.quantile(error, 0.95):.3f}, worst {error.max():.3f}"
    )


if __name__ == "__main__":
    main()

"""The difficulty experts after the encoder is fixed: the exam expert, and calibration of each expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.request.text import SURFACE_NAMES
from semroute_lab.train import tables
from semroute_lab.train.calibrate import platt
from semroute_lab.train.datasets import FAMILIES, Example, Track
from semroute_lab.train.fit import States
from semroute_lab.train.model import GATE_SHARPNESS, Heads, Line

Say = Callable[[str], None]

TABLE_SOURCES = {Track.GOLD: "routellm_mmlu", Track.ZERO: "mmlu_pro_options"}
"""Where the exam expert's outcomes come from."""

LENGTH = "log_characters"
"""The surface feature that is the text's length."""

RECALL_ROWS_MAX = 6_000
"""Rows on which the base encoder is run once more to recall its embedding, half of them exam questions."""

RECALL_RIDGE = 0.01
"""Weight of the ridge penalty."""

LINE_RIDGE = 10.0
"""The same for the exam expert's line: its outcomes are few and noisy."""

FOLDS = 5
"""Of the rows, for values by a line that has not seen them."""

JUDGED = "handwritten/"
"""Sources whose difficulty a person judged begin with this."""

ROWS_MIN = 50
"""An expert with fewer calibration rows stays as it is."""


def add_table(heads: Heads, rows: list[Example], states: States, source: str, seed: int, say: Say) -> None:
    """Give the exam expert its table, or its line, and calibrate it on values of rows that had no part in it.

    `rows` and `states` are the fit and calibration rows together: out-of-fold values need no rows
    to be kept back, and labels are few. `source` is where the outcomes come from.
    """
    own = [i for i, row in enumerate(rows) if row.source == source and row.gain is not None]
    if len(own) < tables.CLUSTERS * ROWS_MIN // 2:
        say(f"exam expert: {len(own)} rows of {source} are too few for a cluster table")
        return
    with torch.inference_mode():
        x = heads.table_inputs(heads.parts(states.pooled[own], states.surface[own]))
    gain = torch.tensor([rows[i].gain for i in own])
    if source == TABLE_SOURCES[Track.ZERO]:
        heads.table, unseen = fit_line(x, gain, heads.recall.out_features, seed)
    else:
        heads.table, unseen = tables.fill(x, gain, seed), tables.out_of_fold(x, gain, seed)
    found = platt(unseen, states.targets.difficulty[own], torch.ones(len(own)))
    _set(heads, len(FAMILIES) - 1, found.scale, found.shift)
    say(f"exam expert: {len(own)} rows, scale {found.scale:.2f}, shift {found.shift:.2f}")


def fit_line(x: Tensor, gain: Tensor, dimensions: int, seed: int) -> tuple[Line, Tensor]:
    """Half the gain that a ridge regression reads from the embedding, half the length of the text.

    For outcomes of other exams and other models: clusters carried nothing over from them to MMLU's pair,
    and neither half is known to say more than the other, so both have the same spread. `x` [rows, inputs]
    are the table's inputs, the first `dimensions` of them the embedding. Also returns the value of each
    row by a line that has not seen it.
    """
    generator = torch.Generator().manual_seed(seed)
    fold = torch.randperm(len(x), generator=generator) % FOLDS
    embedding, length = x[:, :dimensions], x[:, dimensions + SURFACE_NAMES.index(LENGTH)]
    unseen = torch.zeros(len(x))
    for part in range(FOLDS):
        weight, bias = _ridge(embedding[fold != part], gain[fold != part, None], LINE_RIDGE)
        unseen[fold == part] = (embedding[fold == part].double() @ weight[0] + bias).float()
    slope = float(unseen.std() / length.std())
    line = Line(x.shape[1])
    weight, bias = _ridge(embedding, gain[:, None], LINE_RIDGE)
    with torch.no_grad():
        line.weight.zero_()
        line.weight[0, :dimensions] = weight[0]
        line.weight[0, dimensions + SURFACE_NAMES.index(LENGTH)] = slope
        line.bias.copy_(bias)
    return line, unseen + slope * length


def _ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of y [rows, outputs] on x [rows, d]: weight [outputs, d] and bias [outputs]."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x) + penalty * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, (x - mean_x).T @ (y - mean_y)).T
    return weight, mean_y - weight @ mean_x


def fit_recall(heads: Heads, tuned: Tensor, base: Tensor, say: Say) -> None:
    """Ridge regression of the base encoder's unit embeddings on the tuned ones; both [rows, d] states."""
    x, y = F.normalize(tuned, dim=-1), F.normalize(base, dim=-1)
    weight, bias = _ridge(x, y, RECALL_RIDGE)
    with torch.no_grad():
        heads.recall.weight.copy_(weight)
        heads.recall.bias.copy_(bias)
        found = F.cosine_similarity(heads.recall(x), y).mean()
    say(f"base embedding recalled with a cosine of {float(found):.3f} on {len(x)} rows")


def calibrate_experts(heads: Heads, rows: Sequence[Example], check: States, say: Say) -> None:
    """Platt scaling of the experts without a table, each on the calibration rows of its family.

    The everyday expert learns from many kinds of rows, some with a guessed difficulty; it is
    calibrated on those that a person judged, where there are enough.
    """
    with torch.inference_mode():
        means = heads.parts(check.pooled, check.surface).members.mean(-1)
    targets = check.targets
    judged = torch.tensor([row.source.startswith(JUDGED) for row in rows])
    for number, family in enumerate(FAMILIES):
        if number == len(FAMILIES) - 1 and heads.table is not None:
            continue
        own = (targets.family == number) & ~torch.isnan(targets.difficulty)
        if int((own & judged).sum()) >= ROWS_MIN:
            own &= judged
        if int(own.sum()) < ROWS_MIN:
            continue
        found = platt(means[own, number], targets.difficulty[own], targets.weight[own])
        _set(heads, number, found.scale, found.shift)
        say(f"{family} expert: {int(own.sum())} rows, scale {found.scale:.2f}, shift {found.shift:.2f}")
    heads.gate_scale.fill_(GATE_SHARPNESS)


def _set(heads: Heads, number: int, scale: float, shift: float) -> None:
    heads.expert_scale[number] = scale
    heads.expert_shift[number] = shift

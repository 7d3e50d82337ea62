"""The difficulty experts after the encoder is fixed: the cluster table, and calibration of each expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from semroute_extproc.training import tables
from semroute_extproc.training.calibrate import platt
from semroute_extproc.training.datasets import FAMILIES, Example, Track
from semroute_extproc.training.fit import States
from semroute_extproc.training.model import GATE_SHARPNESS, Heads

Say = Callable[[str], None]

TABLE_SOURCES = {Track.GOLD: "routellm_mmlu", Track.ZERO: "mmlu_pro_options"}
"""Where the exam expert's outcomes come from."""

RECALL_ROWS_MAX = 6_000
"""Rows on which the base encoder is run once more to recall its embedding, half of them exam questions."""

RECALL_RIDGE = 0.01
"""Weight of the ridge penalty."""

JUDGED = "handwritten/"
"""Sources whose difficulty a person judged begin with this."""

ROWS_MIN = 50
"""An expert with fewer calibration rows stays as it is."""


def add_table(heads: Heads, rows: list[Example], states: States, source: str, seed: int, say: Say) -> None:
    """Give the exam expert its table and calibrate it on values of rows the table had not seen.

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
    heads.table = tables.fill(x, gain, seed)
    unseen = tables.out_of_fold(x, gain, seed)
    found = platt(unseen, states.targets.difficulty[own], torch.ones(len(own)))
    _set(heads, len(FAMILIES) - 1, found.scale, found.shift)
    say(f"exam expert: table of {len(own)} rows, scale {found.scale:.2f}, shift {found.shift:.2f}")


def fit_recall(heads: Heads, tuned: Tensor, base: Tensor, say: Say) -> None:
    """Ridge regression of the base encoder's unit embeddings on the tuned ones; both [rows, d] states."""
    x, y = F.normalize(tuned, dim=-1).double(), F.normalize(base, dim=-1).double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    gram = (x - mean_x).T @ (x - mean_x) + RECALL_RIDGE * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, (x - mean_x).T @ (y - mean_y)).T
    with torch.no_grad():
        heads.recall.weight.copy_(weight)
        heads.recall.bias.copy_(mean_y - weight @ mean_x)
        found = F.cosine_similarity(heads.recall(x.float()), y.float()).mean()
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

"""The difficulty experts after the encoder is fixed: the cluster table, and calibration of each expert."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semroute_extproc.training import tables
from semroute_extproc.training.calibrate import platt
from semroute_extproc.training.datasets import FAMILIES, Example, Track
from semroute_extproc.training.fit import States
from semroute_extproc.training.model import TABLE_SURFACE, Heads

Say = Callable[[str], None]

TABLE_SOURCES = {Track.GOLD: "routellm_mmlu", Track.ZERO: "mmlu_pro_options"}
"""Where the exam expert's outcomes come from."""

ROWS_MIN = 50
"""An expert with fewer calibration rows stays as it is."""


def add_table(heads: Heads, rows: list[Example], states: States, track: Track, seed: int, say: Say) -> None:
    """Give the exam expert its table and calibrate it on values of rows the table had not seen.

    `rows` and `states` are the fit and calibration rows together: out-of-fold values need no rows
    to be kept back, and labels are few.
    """
    source = TABLE_SOURCES[track]
    own = [i for i, row in enumerate(rows) if row.source == source and row.gain is not None]
    if len(own) < tables.CLUSTERS * ROWS_MIN // 2:
        say(f"exam expert: {len(own)} rows of {source} are too few for a cluster table")
        return
    x = table_inputs(heads, states)[own]
    gain = torch.tensor([rows[i].gain for i in own])
    heads.table = tables.fill(x, gain, seed)
    unseen = tables.out_of_fold(x, gain, seed)
    found = platt(unseen, states.targets.difficulty[own], torch.ones(len(own)))
    _set(heads, len(FAMILIES) - 1, found.scale, found.shift)
    say(f"exam expert: table of {len(own)} rows, scale {found.scale:.2f}, shift {found.shift:.2f}")


def table_inputs(heads: Heads, states: States) -> Tensor:
    """What the table reads: the unit embedding and the weighed surface features; [rows, d + s]."""
    with torch.inference_mode():
        out = heads.parts(states.pooled, states.surface)
        return torch.cat([out.embedding, TABLE_SURFACE * out.form], dim=-1)


def calibrate_experts(heads: Heads, check: States, say: Say) -> None:
    """Platt scaling of the experts without a table, each on the calibration rows of its family."""
    with torch.inference_mode():
        means = heads.parts(check.pooled, check.surface).members.mean(-1)
    targets = check.targets
    for number, family in enumerate(FAMILIES):
        if number == len(FAMILIES) - 1 and heads.table is not None:
            continue
        own = (targets.family == number) & ~torch.isnan(targets.difficulty)
        if int(own.sum()) < ROWS_MIN:
            continue
        found = platt(means[own, number], targets.difficulty[own], targets.weight[own])
        _set(heads, number, found.scale, found.shift)
        say(f"{family} expert: {int(own.sum())} rows, scale {found.scale:.2f}, shift {found.shift:.2f}")


def _set(heads: Heads, number: int, scale: float, shift: float) -> None:
    heads.expert_scale[number] = scale
    heads.expert_shift[number] = shift

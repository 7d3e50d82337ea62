"""Routers fitted to the training labels of Hybrid LLM and RouteLLM, for `eval pair --labels`.

Each label (`train.labels`) is the target of one logistic regression on the bundle's embedding and surface
features. Samples come from the first of these columns that the file has; a single answer per model gives
one sample:

    strong_answer, weak_answer, reference  with BARTScore: texts, or JSON lists of sampled answers
    strong_samples, weak_samples           JSON lists of the qualities of sampled answers
    outcome.strong, outcome.weak           one outcome per model
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from semroute_extproc.request.text import surface_features
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import OUTCOME, Table, json_list
from semroute_lab.evaluate.strategies import Labeled
from semroute_lab.train.labels import targets

ONE_SAMPLE = "one outcome per model: det and prob are the same label, and so is trans where t is 0"
PENALTY = 1.0  # Inverse weight of the L2 penalty
ITERATIONS_MAX = 1000  # Bound on the solver's steps


def samples(table: Table, bartscore: Any = None) -> Floats:
    """Qualities of sampled answers, (n, 2, samples); `bartscore`: directory of a BART to score answers."""
    models = ("strong", "weak")
    if bartscore is None and "strong_samples" not in table.columns:
        return np.stack([table.numbers_in(OUTCOME + model) for model in models], axis=1)[:, :, None]
    kind = "samples" if bartscore is None else "answer"
    found = [_lists(table, f"{model}_{kind}", bartscore) for model in models]
    counts = {len(row) for model in found for row in model}
    if len(counts) != 1 or counts == {0}:
        raise table.error(f"strong_{kind}", "expected equally many samples of both models in every row")
    return np.asarray(found, dtype=np.float64).transpose(1, 0, 2)


def _lists(table: Table, column: str, bartscore: Any) -> list[list[float]]:
    """The qualities of one model's answers, by row."""
    if bartscore is None:
        return [_numbers(table, column, row, field) for row, field in enumerate(table.strings(column))]
    from semroute_lab.train.quality import load_bart_score

    answers = [json_list(field) or [field] for field in table.texts(column)]
    references = zip(table.texts("reference"), answers, strict=True)
    flat = [(reference, str(answer)) for reference, said in references for answer in said]
    values = iter(load_bart_score(bartscore)(*map(list, zip(*flat, strict=True))))
    return [[next(values) for _ in said] for said in answers]


def _numbers(table: Table, column: str, row: int, field: str) -> list[float]:
    try:
        return [float(value) for value in json_list(field) or ()]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise table.error(column, f"expected a JSON list of numbers, found {field[:40]!r}", row) from None


def scores(fit: Labeled, apply: Labeled, kinds: Sequence[str]) -> dict[str, Floats]:
    """P(the strong model is needed) of each row of `apply`, by row name; (m,) each."""
    own, other = (np.asarray(list(map(surface_features, rows.texts)), np.float64) for rows in (fit, apply))
    # Embeddings have length 1; features of unit variance would outweigh them.
    mean, spread = own.mean(axis=0), np.maximum(own.std(axis=0), 1e-3)
    x = np.hstack([fit.known.embedding, (own - mean) / spread])
    inputs = np.hstack([apply.known.embedding, (other - mean) / spread])
    return {f"label {kind}": _head(x, target(fit, kind)[0], inputs) for kind in kinds}


def target(fit: Labeled, kind: str) -> tuple[Floats, dict[str, object]]:
    """The target of a label, (n,), and facts about it, such as t."""
    return targets(kind, fit.samples[:, 0], fit.samples[:, 1])


def notes(fit: Labeled, kinds: Sequence[str]) -> dict[str, dict[str, object]]:
    """Further fields of each label's row: t, and a note where labels coincide."""
    single = fit.samples.shape[2] == 1
    return {
        f"label {kind}": {
            "t": target(fit, kind)[1].get("t"),
            "note": ONE_SAMPLE if single and kind != "win" else None,
        }
        for kind in kinds
    }


def _head(x: Floats, y: Floats, inputs: Floats) -> Floats:
    """Logistic regression on soft labels `y`: every row counts y times as 1 and 1 - y times as 0."""
    from sklearn.linear_model import LogisticRegression

    doubled, weights = np.concatenate([x, x]), np.concatenate([y, 1.0 - y])
    events = np.repeat([1, 0], len(x))
    if min(weights[events == 1].sum(), weights[events == 0].sum()) <= 0.0:
        return np.full(len(inputs), float(y.mean()))
    model = LogisticRegression(C=PENALTY, max_iter=ITERATIONS_MAX)
    found: Floats = model.fit(doubled, events, weights).predict_proba(inputs)[:, 1]
    return found

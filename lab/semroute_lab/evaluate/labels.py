"""Routers fitted to the training labels of Hybrid LLM and RouteLLM, for `eval pair --labels`.

    det    1 where the strong model's mean quality is higher (Hybrid LLM, arXiv 2404.14618, equation 1)
    prob   share of the pairs of sampled answers in which it is higher (section 3.2)
    trans  share in which it is higher by more than t, with the t that spreads the labels most (3.3)
    win    P(strong wins), ties count half (RouteLLM, arXiv 2406.18665, section 3)

Each is the target of one logistic regression on the bundle's embedding and surface features. Samples
come from the first of these columns that the file has; a single answer per model gives one sample:

    strong_answer, weak_answer, reference  with BARTScore: texts, or JSON lists of sampled answers
    strong_samples, weak_samples           JSON lists of the qualities of sampled answers
    strong_correct, weak_correct           one outcome per model
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from semroute_extproc.request.text import surface_features
from semroute_lab.common.metrics import Floats
from semroute_lab.common.tables import Table, json_list
from semroute_lab.evaluate.strategies import Labelled
from semroute_lab.train.labels import targets

KINDS = ("det", "prob", "trans", "win")  # Labels in the order of the report

ABOUT = {f"label {kind}": f"logistic regression on Hybrid LLM's label {kind}" for kind in KINDS[:3]} | {
    "label win": "logistic regression on RouteLLM's P(strong wins), ties count half"
}
"""Row to its description."""

ONE_SAMPLE = "one outcome per model: det and prob are the same label, and so is trans where t is 0"

PENALTY = 1.0  # Inverse weight of the L2 penalty
ITERATIONS_MAX = 1000  # Bound on the solver's steps


def samples(table: Table, bartscore: Any = None) -> Floats:
    """Qualities of sampled answers of the strong and the weak model; (n, 2, samples).
    `bartscore` is the directory of a BART checkpoint, which scores answers against the reference.
    """
    columns = table.columns
    if bartscore is not None:
        from semroute_lab.train.quality import load_bart_score

        score = load_bart_score(bartscore)
        references = table.texts("reference")
        found = []
        for name in ("strong_answer", "weak_answer"):
            answers = [json_list(field) or [field] for field in table.texts(name)]
            flat = [(r, str(a)) for r, said in zip(references, answers, strict=True) for a in said]
            values = iter(score(*map(list, zip(*flat, strict=True))))
            found.append([[next(values) for _ in said] for said in answers])
        return _stacked(table, "strong_answer", found)
    if "strong_samples" not in columns:
        single = (table.numbers_in(f"{model}_correct") for model in ("strong", "weak"))
        return np.stack(list(single), axis=1)[:, :, None]
    names = ("strong_samples", "weak_samples")
    return _stacked(table, names[0], [[_numbers(table, n, row) for row in range(len(table))] for n in names])


def _numbers(table: Table, column: str, row: int) -> list[float]:
    field = table.strings(column)[row]
    try:
        return [float(value) for value in json_list(field) or ()]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise table.error(column, f"expected a JSON list of numbers, found {field[:40]!r}", row) from None


def _stacked(table: Table, column: str, found: list[list[list[float]]]) -> Floats:
    """Both models' samples as an array; DataError unless all rows have equally many."""
    counts = {len(row) for model in found for row in model}
    if len(counts) != 1 or counts == {0}:
        raise table.error(column, "expected equally many samples of both models in every row")
    return np.asarray(found, dtype=np.float64).transpose(1, 0, 2)


def scores(fit: Labelled, apply: Labelled, kinds: Sequence[str]) -> dict[str, Floats]:
    """P(the strong model is needed) of each row of `apply`, by row name; (m,) each."""
    inputs = [np.hstack([rows.known.embedding, _surface(rows.texts)]) for rows in (fit, apply)]
    spread = np.maximum(inputs[0][:, fit.known.embedding.shape[1] :].std(axis=0), 1e-3)
    for x in inputs:
        # Embeddings have length 1; features of unit variance would outweigh them.
        x[:, -len(spread) :] = (x[:, -len(spread) :] - inputs[0][:, -len(spread) :].mean(axis=0)) / spread
    return {f"label {kind}": _head(inputs[0], target(fit, kind)[0], inputs[1]) for kind in kinds}


def target(fit: Labelled, kind: str) -> tuple[Floats, dict[str, object]]:
    """The target of a label, (n,), and facts about it, such as t."""
    return targets(kind, fit.samples[:, 0], fit.samples[:, 1])


def notes(fit: Labelled, kinds: Sequence[str]) -> dict[str, dict[str, object]]:
    """Further fields of each label's row: t, and whether the label says nothing new."""
    found: dict[str, dict[str, object]] = {}
    for kind in kinds:
        _, facts = target(fit, kind)
        note = ONE_SAMPLE if fit.samples.shape[2] == 1 and kind != "win" else None
        found[f"label {kind}"] = {"t": facts.get("t"), "note": note}
    return found


def _surface(texts: Sequence[str]) -> Floats:
    return np.asarray([surface_features(text) for text in texts], dtype=np.float64)


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

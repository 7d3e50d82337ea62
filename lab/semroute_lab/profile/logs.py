"""Graded answers from the logs of other evaluation tools.

`samples_*.jsonl` of lm-evaluation-harness (`--log_samples`): the prompt is the document's own question, with
its choices as lettered lines; without one it is the first argument of the request. A `.json` log of Inspect
(https://inspect.aisi.org.uk; `inspect log convert --to json`): a score is C, I, P, N, a boolean or a number.
Several answers to one prompt (repeats, epochs) count as one, by their mean quality.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from semroute_extproc.errors import DataError
from semroute_lab.common.tables import TEXT_COLUMNS, json_lines, with_options

METRICS = ("exact_match", "acc", "acc_norm", "pass@1", "prompt_level_strict_acc")  # Tried in order
QUESTION_FIELDS = (*TEXT_COLUMNS, "query", "problem", "input")  # Members that hold a question
VALUES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""Inspect's marks (correct, incorrect, partial, no answer) and words as numbers."""

Row = tuple[str, float, float | None]  # Prompt, quality in 0..1 and tokens of an answer, None if unknown


def read_log(path: Path, metric: str | None = None, chosen: str | None = None) -> list[Row]:
    """The graded answers of a log, one per prompt; raises DataError.
    `metric` is a metric of lm-evaluation-harness or a scorer of Inspect, `chosen` a filter of the former;
    they must be given where there are several.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}:1:: cannot be read: {error}") from error
    if path.suffix == ".jsonl":
        return _means(_harness(path, text, metric, chosen))
    if path.suffix == ".json":
        return _means(_inspect(path, text, metric))
    raise DataError(f"{path}:1:: expected samples_*.jsonl of lm-evaluation-harness or a .json log of Inspect")


def _harness(path: Path, text: str, metric: str | None, chosen: str | None) -> Iterable[Row]:
    rows = list(json_lines(path, text.split("\n")))
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for _, row in rows))
    if chosen is None and len(filters) > 1:
        raise DataError(f"{path}:1:filter: name one with --filter; there are {', '.join(filters)}")
    if chosen is not None and chosen not in filters:
        raise DataError(f"{path}:1:filter: no filter {chosen!r}; there are {', '.join(filters)}")
    for number, row in rows:
        if chosen is None or row.get("filter", "none") == chosen:
            listed = row.get("metrics")
            names = [metric] if metric else listed if isinstance(listed, list) else METRICS
            name = next((name for name in names if name in row), None)
            if name is None:
                raise DataError(f"{path}:{number}:: expected a metric, one of {', '.join(map(str, names))}")
            place = f"{path}:{number}:{name}"
            yield _harness_prompt(f"{path}:{number}:doc", row), _quality(place, row[name]), None


def _harness_prompt(place: str, row: Mapping[str, Any]) -> str:
    doc = row.get("doc")
    if isinstance(doc, dict):
        for name in QUESTION_FIELDS:
            if isinstance(doc.get(name), str) and doc[name].strip():
                return with_options(doc[name], _options(doc))
    first: Any = row.get("arguments")
    while isinstance(first, list | dict) and first:
        first = first[0] if isinstance(first, list) else next(iter(first.values()))
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{place}: expected a question in {', '.join(QUESTION_FIELDS)}, or arguments")
    return first


def _options(doc: Mapping[str, Any]) -> Sequence[str]:
    for name in ("choices", "options"):
        found = doc.get(name)
        found = found.get("text") if isinstance(found, dict) else found
        if isinstance(found, list) and all(isinstance(option, str) for option in found):
            return found
    return ()


def _inspect(path: Path, text: str, scorer: str | None) -> Iterable[Row]:
    try:
        samples = json.loads(text)["samples"]
        assert isinstance(samples, list)
    except (ValueError, TypeError, KeyError, AssertionError):
        raise DataError(f"{path}:1:samples: expected a log of Inspect with samples") from None
    for number, sample in enumerate(samples, start=1):
        place = f"{path}:{number}"
        if not isinstance(sample, dict) or not sample.get("scores"):
            continue  # A sample that ended with an error has no scores.
        scores = sample["scores"]
        if scorer is None and len(scores) > 1:
            raise DataError(f"{place}:scores: name one with --metric; there are {', '.join(scores)}")
        name = scorer or next(iter(scores))
        if name not in scores:
            raise DataError(f"{place}:scores: no scorer {name!r}; there are {', '.join(scores)}")
        usage = (sample.get("output") or {}).get("usage") or {}
        prompt = with_options(_inspect_prompt(place, sample.get("input")), sample.get("choices") or ())
        yield prompt, _quality(f"{place}:{name}", scores[name].get("value")), usage.get("output_tokens")


def _inspect_prompt(place: str, given: Any) -> str:
    """The input, or the text of its last user message."""
    if isinstance(given, list):
        said = [message.get("content") for message in given if message.get("role") == "user"]
        given = said[-1] if said else None
        if isinstance(given, list):
            given = "\n".join(part["text"] for part in given if part.get("type") == "text")
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"{place}:input: expected text or a user message")
    return given


def _quality(place: str, value: Any) -> float:
    found = VALUES.get(value, value) if isinstance(value, str) else value
    try:
        quality = float(found)
    except (TypeError, ValueError):
        quality = -1.0
    if not 0.0 <= quality <= 1.0:
        raise DataError(f"{place}: expected a quality in 0..1, found {str(value)[:40]!r}")
    return quality


def _means(rows: Iterable[Row]) -> list[Row]:
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row[0], []).append(row)
    found: list[Row] = []
    for prompt, same in by_prompt.items():
        counts = [tokens for _, _, tokens in same if tokens is not None]
        mean = sum(quality for _, quality, _ in same) / len(same)
        found.append((prompt, mean, sum(counts) / len(counts) if counts else None))
    return found

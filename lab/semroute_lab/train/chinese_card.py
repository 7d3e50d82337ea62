"""The Chinese bundle's card: the evaluation's figures as Markdown, nothing typed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semroute_extproc.encoder.manifest import Manifest

Figures = Mapping[str, Any]

_COLUMNS = {"shipped": "this bundle", "fp32": "all in fp32", "english": "semroute-minilm"}

_DATA = """\
| source | licence | used for |
|---|---|---|
| `datasets/chinese_domain.train.jsonl` | Apache-2.0, written for this project | domain, reference traffic |
| `datasets/chinese_difficulty.train.jsonl` | Apache-2.0, written for this project | domain, difficulty |
| BELLE (`intent/belle.csv.gz`) | Apache-2.0 / ODC-By | task, reference traffic |
| `datasets/chinese.eval.jsonl` | Apache-2.0, written for this project | evaluation only |
| CMMLU (`intent/cmmlu.csv.gz`) | CC-BY-NC-SA-4.0 | evaluation only |
| AlignBench (`intent/alignbench.csv.gz`) | no licence file | evaluation only |
"""

_METHOD = """\
The encoder is {base} (BAAI, MIT): BERT, 4 layers of {dimensions}, the state of [CLS]. It was read
from a published int8 export (sha256 `{sha}`) and turned back into fp32, so it carries that export's
quantisation error. It is frozen. Its tokenizer's lower-casing was switched on, because the
vocabulary has next to no capitals.

Domain is a linear classifier times a vote of the nearest training rows. Difficulty and task are linear
in the embedding and the surface features. Temperatures, Platt scaling and the threshold of the
unknown come from five-fold cross-fitting by the hash of the question: each training row was judged
by heads that never saw it. A question that is reported on is in no fit, with or without its
options. Difficulty is P(hard) where half the everyday requests are hard. The English bundle's is
calibrated on other rows too, so equal values in the two languages need not mean the same; shares of
traffic are the safer threshold. Its quantiles, like the threshold of the unknown, are over all training rows.
"""


def card(report: Figures, manifest: Manifest) -> str:
    """The model card; `report` is what `chinese_report.evaluate` gave, with the cross-fitted figures."""
    method = _METHOD.format(
        base=manifest.encoder.base,
        dimensions=manifest.encoder.dimensions,
        sha=manifest.encoder.base_sha256,
    )
    parts = [
        f"# {manifest.name}\n\n{manifest.description} Generated from the evaluation; brackets are 95 % "
        "bootstrap intervals.\n",
        f"## How it was made\n\n{method}",
        f"## Precision\n\n{_precision(report['precision'])}",
        f"## Data\n\n{_DATA}",
        f"## Figures on rows that no fit saw\n\n{_held_out(report)}",
        f"## Cross-fitted on the training rows\n\n{_cross_fitted(report['cross_fitted'])}",
        f"## Recall by domain\n\n{_recall(report['shipped'])}",
        f"## Known failures\n\n{_failures(report)}",
    ]
    return "\n".join(parts)


def _held_out(report: Figures) -> str:
    columns = [name for name in _COLUMNS if name in report]
    lines = [
        "| set | figure | rows | baseline | " + " | ".join(_COLUMNS[name] for name in columns) + " |",
        "|" + "---|" * (4 + len(columns)),
    ]

    def line(group: str, figure: str, rows: int, baseline: str, cells: list[str]) -> None:
        lines.append(f"| {group} | {figure} | {rows} | {baseline} | " + " | ".join(cells) + " |")

    for group, own in report["shipped"].items():
        of = [report[name][group] for name in columns]
        for head in ("domain", "task"):
            if head in own:
                n, base = own[head]["rows"], f"majority {own[head]['majority']:.3f}"
                line(group, f"{head} accuracy", n, base, [_interval(one[head]["accuracy"]) for one in of])
                line(group, f"{head} macro-F1", n, "", [f"{one[head]['macro_f1']:.3f}" for one in of])
                line(group, f"{head} ECE", n, "", [f"{one[head]['ece']:.3f}" for one in of])
        if "difficulty" in own:
            hard, n = [one["difficulty"] for one in of], own["difficulty"]["rows"]
            length = f"length {_interval(own['difficulty']['auroc_length'])}"
            line(group, "difficulty AUROC", n, length, [_interval(one["auroc"]) for one in hard])
            line(group, "AUROC over length", n, "", [_interval(one["lead"]) for one in hard])
            line(group, "difficulty ECE", n, "", [f"{one['ece']:.3f}" for one in hard])
            means = [f"{one['mean_easy']:.2f} / {one['mean_hard']:.2f}" for one in hard]
            line(group, "mean P(hard), easy / hard", n, "", means)
        line(group, "called unknown", own["rows"], "", [_interval(one["unknown"]) for one in of])
    note = (
        "\n`chinese` is `chinese.eval.jsonl`; `cmmlu` is a sample of questions without options from the "
        "subjects that map to a domain; `alignbench` maps by subcategory; `noise` is random characters, "
        "which ought to be unknown. The English bundle calls every Chinese text unknown, and its column "
        "shows what it would have said.\n"
    )
    return "\n".join(lines) + "\n" + note


def _precision(found: Figures) -> str:
    kept = ", ".join(found["kept"]) or "none"
    return (
        "The embedding table is int8, and matrix products of the encoder are int8 per channel with dynamic "
        f"activations except in these modules, which stay in fp32: {kept}. No accuracy or AUROC below is "
        f"lower than fp32's by more than {found['gap']:.4f}, and no share of unknown rows further from it. "
        "The mixture was chosen by that gap on these very rows, of which one row moves a figure by up to "
        "0.005.\n"
    )


def _cross_fitted(figures: Figures) -> str:
    lines = ["| figure | rows | value |", "|---|---|---|"]
    lines += [
        f"| {head} accuracy | {figures[head]['rows']} | {_interval(figures[head]['accuracy'])} |"
        for head in ("domain", "task")
    ]
    hard = figures["difficulty"]
    lines.append(f"| difficulty AUROC | {hard['rows']} | {_interval(hard['auroc'])} |")
    return "\n".join(lines) + "\n"


def _recall(own: Figures) -> str:
    sets = [name for name in ("chinese", "cmmlu") if name in own]
    lines = ["| domain | " + " | ".join(sets) + " |", "|" + "---|" * (1 + len(sets))]
    for domain in own[sets[0]]["domain"]["recall"]:
        cells = [own[name]["domain"]["recall"].get(domain) for name in sets]
        shown = ("" if cell is None else f"{cell:.2f}" for cell in cells)
        lines.append(f"| {domain} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _failures(report: Figures) -> str:
    own = report["shipped"]
    lines = []
    for name, figures in own.items():
        for truth, said, count in figures.get("domain", {}).get("confused", [])[:3]:
            if count:
                lines.append(f"- {name}: {truth} called {said}, {count} times.")
    if "noise" in own:
        lines.append(f"- Of random characters {own['noise']['unknown'][0]:.0%} are called unknown.")
    lines += [
        "- No training row teaches the tasks `tool use` and `chat`: they are never the answer.",
        "- Difficulty was taught by everyday requests only; on examination questions it is unmeasured.",
        "- Text that mixes Chinese with much English is read with a vocabulary that knows little English.",
    ]
    return "\n".join(lines) + "\n"


def _interval(figure: list[float | None]) -> str:
    value, low, high = figure
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

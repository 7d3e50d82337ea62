"""The evaluation's JSON as CARD.md: nothing in the card is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from semroute_lab.train.assess import figures

INT8_TOLERANCE = 0.005
"""The int8 graph may cost this much of any figure before the card says that it costs too much."""

CONFUSED_MAX = 6
"""Most confusions that the card lists."""


def render(document: dict[str, Any]) -> str:
    """The card of the document that `assess.assess` made, with `training` and `fp32` added to it."""
    parts = [
        _head(document),
        _data(document.get("training")),
        _domain(document),
        _difficulty(document),
        _pairs(document),
        _other_tracks(document),
        _pool(document),
        _unseen(document),
        _languages(document),
        _quantisation(document),
        _latency(document),
        _limits(document),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(document: dict[str, Any]) -> str:
    bundle, training = document["bundle"], document.get("training") or {}
    lines = [
        f"# {bundle['name']} {bundle['version']}",
        "",
        "Domain, task and difficulty of a prompt, from one pass of a small encoder. This card is",
        "generated from `evaluation.json`; brackets are 95 % bootstrap intervals",
        f"({document['bootstrap']} resamples of the requests, scores held fixed). Figures are of the int8",
        "graph as it is served, on rows that no fit, early stopping or calibration saw; the recipe itself",
        "was chosen by looking at them, so new rows may come out a little lower.",
    ]
    if training:
        took = ""
        if training["minutes"] is not None:
            threads = f"{training['threads']} thread{'s' if training['threads'] > 1 else ''}"
            took = f", {training['minutes']:.0f} minutes of CPU time on {threads}"
        lines += [
            "",
            f"Track: **{training['track']}** ({_TRACKS[training['track']]}). Seed {training['seed']}, "
            f"{training['epochs']} epochs of fine-tuning{took}.",
        ]
        lines += training.get("remarks", [])
    return "\n".join(lines)


_TRACKS = {
    "gold": "of MMLU's outcomes only the gold rows were trained on, of GSM8K's test none",
    "zero": "no outcome of MMLU or of GSM8K's test was trained on",
}


def _data(training: dict[str, Any] | None) -> str:
    if not training:
        return ""
    lines = [
        "## Data",
        "",
        "| source | licence | rows to fit | to calibrate | used for |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['source']} | {row['licence']} | {row['fit']} | {row['calibrate']} | {row['used_for']} |"
        for row in training["sources"]
    ]
    lines += ["", f"Base weights: {training['base']}, sha256 `{training['base_sha256']}`."]
    if training["dropped"]:
        reasons = ", ".join(f"{count} ({reason})" for reason, count in sorted(training["dropped"].items()))
        lines += [f"Rows that lost a target or were left out: {reasons}."]
    return "\n".join(lines)


def _interval(estimate: dict[str, Any] | None, digits: int = 3) -> str:
    if estimate is None or estimate["value"] is None:
        return ""
    shown = f"{estimate['value']:.{digits}f}"
    if estimate.get("low") is None:
        return shown
    return f"{shown} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


_ECE = "ECE in 15 bins; in parentheses what chance gives a perfectly calibrated model on as many rows."


def _domain(document: dict[str, Any]) -> str:
    if not document["domain"]:
        return ""
    rows = [
        (
            name,
            str(report["rows"]["known"]),
            model["name"],
            _interval(model["accuracy"]),
            _interval(model["macro_f1"]),
            f"{model['ece']:.3f} ({model['ece_if_calibrated']:.3f})",
            _interval(model["accuracy_minus_tfidf"]),
            f"{report['unknown']:.3f}" if model["name"] == "bundle" else "",
        )
        for name, report in document["domain"].items()
        for model in report["models"]
    ]
    header = ("set", "rows", "model", "accuracy", "macro-F1", "ECE", "over TF-IDF", "called unknown")
    return "\n".join(["## Domain (14 classes)", "", _ECE, "", *_table(header, rows)])


def _difficulty(document: dict[str, Any]) -> str:
    if not document["difficulty"]:
        return ""
    rows = []
    for name, report in document["difficulty"].items():
        ours = report["ours"]
        rows.append(
            (
                name,
                f"{report['rows']} ({report['hard']} hard)",
                _interval(ours["auroc"]),
                _interval(report["length"]["auroc"]),
                f"{ours['ece']:.3f} ({ours['ece_if_calibrated']:.3f})",
                f"{ours['mean_easy']:.2f} / {ours['mean_hard']:.2f}",
            )
        )
    header = ("set", "rows", "AUROC", "AUROC of length", "ECE", "mean, easy / hard")
    return "\n".join(["## Difficulty of everyday requests", "", *_table(header, rows)])


def _pairs(document: dict[str, Any]) -> str:
    if not document["pairs"]:
        return ""
    rows = []
    for name, report in document["pairs"].items():
        for router in report["routers"]:
            if "apgr" not in router:
                continue
            rows.append(
                (
                    name,
                    router["name"],
                    _interval(router["apgr"]),
                    *(_interval(router[f"cpt{q}"], 1) for q in (20, 50, 80)),
                    *(_interval(router[f"drop{a}"], 1) for a in (10, 20, 40)),
                    _interval(router.get("apgr_minus_length")),
                )
            )
    header = ("pair", "router", "APGR", "CPT20", "CPT50", "CPT80", "drop 10 %", "20 %", "40 %", "over length")
    lines = ["## As a router between two models", "", *_table(header, rows), ""]
    for name, report in document["pairs"].items():
        calibration, models = report["calibration"], report["models"]
        lines.append(
            f"{name}: strong {models['strong']:.3f}, weak {models['weak']:.3f}; difficulty has ECE "
            f"{calibration['ece']:.3f} ({calibration['ece_if_calibrated']:.3f} by chance) as the probability "
            f"that the strong model does better (rate {calibration['rate']:.3f}, "
            f"mean {calibration['mean']:.3f}). {_verdict(report)}"
        )
    within = [
        (name, row["name"], _interval(row["apgr"]))
        for name, report in document["pairs"].items()
        for row in report["within_subject"] or []
    ]
    if within:
        lines += ["", "Within subjects (the subject's mean taken out, then length as well):", ""]
        lines += _table(("pair", "router", "APGR"), within)
    return "\n".join(lines)


def _other_tracks(document: dict[str, Any]) -> str:
    """The pairs of runs that were trained on fewer outcomes, beside length."""
    rows = [
        (
            f"{other['training']['track']}, {other['training']['epochs']} epochs",
            name,
            row["name"],
            _interval(row["apgr"]),
            *(_interval(row[f"cpt{q}"], 1) for q in (20, 50, 80)),
            _interval(row.get("apgr_minus_length")),
        )
        for other in document.get("beside", [])
        for name, report in other["pairs"].items()
        for row in report["routers"]
        if row["name"] in ("length", "ours")
    ]
    if not rows:
        return ""
    tracks = [other["training"]["track"] for other in document["beside"]]
    lines = ["## The same recipe trained on less", ""]
    lines += [f"Track **{track}**: {_TRACKS[track]}." for track in tracks]
    header = ("run", "pair", "router", "APGR", "CPT20", "CPT50", "CPT80", "over length")
    lines += ["", *_table(header, rows)]
    for other in document["beside"]:
        for name, report in other["pairs"].items():
            lines += ["", f"{other['training']['track']}, {name}: {_verdict(report)}"]
    return "\n".join(lines)


def _verdict(report: dict[str, Any]) -> str:
    """What may be claimed: a difference whose interval holds 0 is no win."""
    ours = next((row for row in report["routers"] if row["name"] == "ours"), None)
    if ours is None:
        return ""
    difference = ours["apgr_minus_length"]
    if difference["low"] is None:
        return ""
    if difference["low"] > 0:
        return "It beats length beyond its interval."
    if difference["high"] < 0:
        return "**It loses to length beyond its interval.**"
    return "**The difference to length is within its interval: no win is claimed.**"


def _pool(document: dict[str, Any]) -> str:
    report = document.get("pool")
    if not report:
        return ""
    rows = []
    for setting, found in report["settings"].items():
        for router in found["routers"]:
            gap = router.get("area_minus_zero")
            rows.append(
                (
                    f"{setting} ({found['pool_size']})",
                    router["name"],
                    f"{router['area']['value']:.4f}",
                    "" if gap is None else f"{gap['value']:+.4f} ± {gap['se']:.4f}",
                    "" if gap is None else f"{gap['wins']}/{report['trials']}",
                )
            )
    header = ("models of the pool", "router", "deferral-curve area", "over ZeroRouter (s.e.)", "trials won")
    return "\n".join(
        [
            "## Models the router has not seen",
            "",
            f"UniRoute's protocol on {report['data']['file']}, {report['trials']} trials; neighbourhoods by",
            "the graph's `neighbour_embedding`. The clairvoyant reads outcomes of the unseen models that a",
            "router must not have: what a linear router on this embedding could reach at best.",
            "",
            *_table(header, rows),
        ]
    )


def _unseen(document: dict[str, Any]) -> str:
    rows = [
        (
            name,
            model["name"],
            _interval(model["accuracy"]),
            _interval(model["ood"]["auroc"]),
            f"{model['ood']['fpr95']:.3f}",
        )
        for name, report in document["unseen"].items()
        for model in report["models"]
        if model["ood"] is not None
    ]
    if not rows:
        return ""
    header = ("set", "score", "accuracy of known", "out-of-scope AUROC", "FPR at 95 % TPR")
    return "\n".join(
        [
            "## Unknown intents",
            "",
            "Heads fitted on the train split of intents, on the bundle's embedding; the score tells known",
            "from out-of-scope requests.",
            "",
            *_table(header, rows),
        ]
    )


def _languages(document: dict[str, Any]) -> str:
    found = document.get("languages")
    if not found:
        return ""
    rows = [
        (
            language,
            str(one["rows"]),
            f"{one['unknown']:.2f}",
            "" if one["accuracy_of_known"] is None else f"{one['accuracy_of_known']:.2f}",
        )
        for language, one in found.items()
    ]
    return "\n".join(
        [
            "## Other languages",
            "",
            "The bundle knows English. Text in another language is called unknown where its script or its",
            "function words tell it; the lists of words were completed with these rows in view. Chinese",
            "has a bundle of its own.",
            "",
            *_table(("language", "rows", "called unknown", "domain right, of the rest"), rows),
        ]
    )


def _quantisation(document: dict[str, Any]) -> str:
    reference = document.get("fp32")
    if not reference:
        return ""
    ours = figures(document)
    rows, worst = [], 0.0
    for name, value in ours.items():
        if name in reference:
            worst = min(worst, value - reference[name])
            rows.append((name, f"{reference[name]:.4f}", f"{value:.4f}", f"{value - reference[name]:+.4f}"))
    said = (
        f"No figure loses more than {INT8_TOLERANCE}."
        if worst >= -INT8_TOLERANCE
        else f"**The largest loss is {-worst:.4f}, over the {INT8_TOLERANCE} aimed at.**"
    )
    return "\n".join(
        ["## int8 against fp32", "", *_table(("figure", "fp32", "int8", "change"), rows), "", said]
    )


def _latency(document: dict[str, Any]) -> str:
    found = document["latency"]
    rows = [
        (tokens, f"{times['p50']:.1f}", f"{times['p95']:.1f}")
        for tokens, times in found["milliseconds"].items()
    ]
    return "\n".join(
        [
            "## Latency",
            "",
            f"Framing and one pass, one thread, {found['machine']}, milliseconds.",
            "",
            *_table(("tokens", "p50", "p95"), rows),
        ]
    )


def _limits(document: dict[str, Any]) -> str:
    lines = [
        "## Known failures",
        "",
        "- English only. Text in another language is called unknown instead of guessed, where its script or",
        "  its function words tell it: a few words without any, or without a list, are read as English.",
        "- `hard` of everyday requests is one writer's judgement, and the word problems of GSM8K's train set",
        "  carry a guess from their length: no model was run on either.",
        "- Text over the window is read by its head and its tail; what only the middle says is not seen.",
    ]
    for name, report in document["domain"].items():
        confusion = report.get("confusion")
        if confusion:
            lines.append(f"- Most frequent confusions on {name}: {', '.join(_confused(confusion))}.")
    return "\n".join(lines)


def _confused(confusion: dict[str, Any]) -> list[str]:
    labels, counts = confusion["labels"], confusion["counts"]
    wrong = [
        (count, labels[i], labels[j])
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    wrong.sort(key=lambda one: (-one[0], one[1], one[2]))
    return [f"{truth} as {said} ({count})" for count, truth, said in wrong[:CONFUSED_MAX]]

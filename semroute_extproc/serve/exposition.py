"""Prometheus' text format: the pages of several workers as one.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping


def merged(pages: Mapping[str, str]) -> str:
    """One page of all `pages` (worker to page), each sample with the label `worker`.

    Samples of one metric stand together below one HELP and TYPE, as the format asks. A series a
    worker keeps gauges right and lets Prometheus see a counter that begins again for what it is.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in pages.items():
        name = ""
        for line in page.splitlines():
            if line.startswith("# "):
                name = line.split(" ", 3)[2]
                head = heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
            elif line:
                samples.setdefault(name, []).append(_labelled(line, worker))
    lines = [line for name, head in heads.items() for line in (*head, *samples.get(name, ()))]
    return "\n".join(lines) + "\n" if lines else ""


def _labelled(sample: str, worker: str) -> str:
    """A sample's line with the label put before its others."""
    end = next(index for index, sign in enumerate(sample) if sign in "{ ")
    label = f'worker="{worker}"'
    if sample[end] == "{":
        return f"{sample[: end + 1]}{label},{sample[end + 1 :]}"
    return f"{sample[:end]}{{{label}}}{sample[end:]}"

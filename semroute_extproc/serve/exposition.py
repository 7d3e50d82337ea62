"""The metrics pages of several workers as one.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families


def merged(pages: Mapping[str, str]) -> list[Metric]:
    """The families of all `pages` (worker to page), each sample with the label `worker`.

    The workers' series stay apart: a sum would fall when a worker restarts, and gauges have no sum.
    """
    families: dict[str, Metric] = {}
    for worker, page in pages.items():
        for family in text_string_to_metric_families(page):
            known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            known.samples += [
                sample._replace(labels={"worker": worker, **sample.labels}) for sample in family.samples
            ]
    return list(families.values())

"""Embeddings of texts as artifacts of strategies use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from semroute_extproc.encoder.offline import Scorer
from semroute_extproc.errors import DataError
from semroute_lab.common.metrics import Integers, Vectors
from semroute_lab.common.progress import tracked


def embed(scorer: Scorer, texts: Sequence[str]) -> tuple[Integers, Vectors]:
    """The rows that the default bundle reads, and their embeddings (rows, d); identical texts run once.
    Texts in a language with a bundle of its own are left out: their embedding is another one, and serving
    would not use it with these artifacts. Raises DataError if none is left.
    """
    distinct = list(dict.fromkeys(texts))
    signals = tracked(scorer.score_all(distinct), len(distinct), "embedding")
    found = {
        text: one.neighbours
        for text, one in zip(distinct, signals, strict=True)
        if one.revision == scorer.bundle.revision and one.neighbours is not None
    }
    rows = [row for row, text in enumerate(texts) if text in found]
    if not rows:
        raise DataError(f"no text is in a language of bundle {scorer.bundle.manifest.name}")
    return np.asarray(rows, dtype=np.int64), np.stack([found[texts[row]] for row in rows])

"""Signals and embeddings of many texts, each distinct text read once."""

from collections.abc import Sequence

import numpy as np

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import DataError
from semroute_extproc.serve.offline import Scorer
from semroute_lab.common.metrics import Integers, Vectors
from semroute_lab.common.options import tracked


def signals_of(scorer: Scorer, texts: Sequence[str], what: str) -> list[Signals]:
    """The signals of each text; `what` names the progress bar."""
    distinct = list(dict.fromkeys(texts))
    found = tracked(scorer.score_all(distinct), len(distinct), what)
    signals = dict(zip(distinct, found, strict=True))
    return [signals[text] for text in texts]


def embed(scorer: Scorer, texts: Sequence[str]) -> tuple[Integers, Vectors]:
    """Rows in the default bundle's languages, and their embeddings (rows, d); DataError if none."""
    found = signals_of(scorer, texts, "embedding")
    known = {
        row: one.neighbours
        for row, one in enumerate(found)
        if one.revision == scorer.bundle.revision and one.neighbours is not None
    }
    if not known:
        raise DataError(f"no text is in a language of bundle {scorer.bundle.manifest.name}")
    return np.asarray(list(known), dtype=np.int64), np.stack(list(known.values()))

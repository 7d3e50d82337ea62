"""Signals and embeddings of many texts, each distinct text read once."""

from collections.abc import Sequence

import numpy as np

from semroute_extproc.encoder.signals import Signals
from semroute_extproc.errors import DataError
from semroute_extproc.serve.offline import Scorer
from semroute_lab.common.decisions import embedding_of
from semroute_lab.common.metrics import Integers, Vectors
from semroute_lab.common.options import tracked
from semroute_lab.common.tables import Table


def signals_of(scorer: Scorer, texts: Sequence[str], what: str) -> list[Signals]:
    """The signals of each text; `what` names the progress bar."""
    distinct = list(dict.fromkeys(texts))
    found = tracked(scorer.score_all(distinct), len(distinct), what)
    signals = dict(zip(distinct, found, strict=True))
    return [signals[text] for text in texts]


def embed(scorer: Scorer, texts: Sequence[str], table: Table | None = None) -> tuple[Integers, Vectors]:
    """Rows in the default bundle's languages, and their embeddings (rows, d); DataError if none.

    Where the `table` of the texts has the embedding of this bundle, as one of a decision log may, it is used.
    """
    own, found = scorer.bundle.revision, list[Vectors | None]([None] * len(texts))
    if table is not None and table.has("embedding") and table.has("revision"):
        pairs = zip(table.columns["revision"], table.columns["embedding"], strict=True)
        found = [embedding_of({"embedding": x}) if revision == own else None for revision, x in pairs]
    missing = [row for row, x in enumerate(found) if x is None]
    read = signals_of(scorer, [texts[row] for row in missing], "embedding") if missing else []
    for row, one in zip(missing, read, strict=True):
        found[row] = one.neighbors if one.revision == own else None
    known = {row: x for row, x in enumerate(found) if x is not None}
    if not known:
        raise DataError(f"no text is in a language of bundle {scorer.bundle.manifest.name}")
    return np.asarray(list(known), dtype=np.int64), np.stack(list(known.values()))

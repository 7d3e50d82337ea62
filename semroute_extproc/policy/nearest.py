"""Cosines to stored vectors, and the most similar of them, exactly.

Pure. A search first reads only the leading coordinates of all rows, in a basis in which these hold
most of the length (the principal axes), and bounds what the rest can add by Cauchy and Schwarz:
head · head' ± |rest| |rest'|. Only rows whose upper bound reaches the k-th best lower one are read
in full, so nothing is missed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from semroute_extproc.signals import FloatArray

HEAD = 64
"""Leading coordinates read of every row."""

SMALL = 4_096
"""Up to so many rows the full product is as fast."""

SLACK = 1e-5
"""Added to bounds: float32 rounds, and a bound must not."""


class Nearest:
    """Rows of length 1, ready to be searched."""

    def __init__(self, rows: FloatArray, k: int) -> None:
        """`rows` (n, d), to be searched for `k`; 0 if only the cosines with all will be asked for."""
        self._rows, self._k = rows, min(k, len(rows))
        # Column-major: the product with a vector then streams through memory, in half the time.
        self._columns = np.asfortranarray(rows).T
        self._basis: FloatArray | None = None
        if 0 < k < len(rows) and len(rows) > SMALL and rows.shape[1] > 2 * HEAD:
            _, axes = np.linalg.eigh((rows.T @ rows).astype(np.float64))
            self._basis = np.ascontiguousarray(axes[:, ::-1].T[:HEAD], dtype=np.float32)
            head = rows @ self._basis.T
            self._head = np.asfortranarray(head).T
            self._rest = np.sqrt(np.maximum((rows**2).sum(axis=1) - (head**2).sum(axis=1), 0.0) + SLACK)

    def cosines(self, x: FloatArray) -> FloatArray:
        """With every row; (n,)."""
        found: FloatArray = x @ self._columns
        return found

    def top(self, x: FloatArray) -> tuple[npt.NDArray[np.intp], FloatArray]:
        """The k rows with the highest cosines, in no order, and these."""
        n, k = len(self._rows), self._k
        if self._basis is None:
            return _top(self.cosines(x), k)
        head = self._basis @ x
        near: FloatArray = head @ self._head
        margin = np.float32(np.sqrt(max(float(x @ x - head @ head), 0.0) + SLACK)) * self._rest
        low = near - margin
        floor = np.partition(low, n - k)[n - k] - np.float32(SLACK)
        kept = np.flatnonzero(near + margin >= floor)
        if len(kept) > n // 4:
            return _top(self.cosines(x), k)
        best, cosines = _top(self._rows[kept] @ x, k)
        return kept[best], cosines


def _top(cosines: FloatArray, k: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    best = np.argpartition(cosines, len(cosines) - k)[len(cosines) - k :]
    return best, cosines[best]

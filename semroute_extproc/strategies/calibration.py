"""The file of `semroute calibrate`: a score on the operator's own prompts.

Hybrid LLM (arXiv 2404.14618), section 4.3: the threshold of a wanted quality is chosen on a few
hundred validation prompts whose outcome under both models is known.
"""

from pathlib import Path

from pydantic import Field

from semroute_extproc.io.files import read_json
from semroute_extproc.settings.base import QUANTILES, Model, Quantiles

FORMAT = 1  # of calibrations that this package reads and writes
FILE_BYTES_MAX = 1024 * 1024  # of a calibration


class Calibration(Model):
    """A score on the operator's own prompts."""

    format: int = FORMAT
    score: str  # kind of the strategy whose score was calibrated
    bundle: str
    revision: str  # of the bundle that scored
    artifact: str = ""  # Digest of the artifact that scored, or of the judge; empty for `threshold`.
    rows: int = Field(gt=0)
    data: str = ""
    data_sha256: str = ""
    quantiles: Quantiles  # of the score on the prompts
    quality: tuple[float, ...] | None = Field(None, min_length=QUANTILES, max_length=QUANTILES)
    """Mean outcome with 0, 1, … 100 % of the prompts at the strong model, those of the highest scores;
    None where the outcomes are not known."""

    def share_for_drop(self, most: float) -> float:
        """The lowest strong share from which on every share loses at most `most` of the strong quality."""
        # Ignore a share with a small loss below a share with a larger loss: it is noise in the curve.
        if self.quality is None:
            raise ValueError("the calibration has no outcomes, so the quality loss is unknown")
        floor = self.quality[-1] - most * abs(self.quality[-1])
        worse = [share for share, quality in enumerate(self.quality) if quality < floor - 1e-12]
        return (worse[-1] + 1) / (QUANTILES - 1) if worse else 0.0


def read_calibration(path: Path) -> Calibration:
    """Read a calibration; raises ArtifactError, naming the file and what is wrong."""
    return read_json(path, Calibration, FILE_BYTES_MAX, "`semroute calibrate` writes it")

"""Calibrations: the share that a quality drop allows, and files that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from semroute_lab.common.writing import write_json
from semroute_lab.fit.settle import quality_by_share, settle, wilson

from semroute_extproc.errors import ArtifactError
from semroute_extproc.strategies.calibration import Calibration, read_calibration

QUANTILES = tuple(n / 100 for n in range(101))


def calibration(**changes: Any) -> Calibration:
    values = {"score": "threshold", "bundle": "b", "revision": "0" * 12, "rows": 9, "quantiles": QUANTILES}
    return Calibration.model_validate({**values, **changes})


def rising(low: float, high: float) -> tuple[float, ...]:
    return tuple(np.linspace(low, high, 101).tolist())


class TestShareForDrop:
    def test_the_least_share_that_keeps_the_quality(self) -> None:
        # Quality .6 to .8: a drop of 10 % leaves .72, reached at a share of .6.
        assert calibration(quality=rising(0.6, 0.8)).share_for_drop(0.1) == pytest.approx(0.6)

    def test_the_ends(self) -> None:
        found = calibration(quality=rising(0.6, 0.8))
        assert found.share_for_drop(0.0) == 1.0
        assert found.share_for_drop(0.5) == 0.0

    def test_a_lucky_share_below_a_bad_one_is_not_taken(self) -> None:
        quality = list(rising(0.6, 0.8))
        quality[10] = 0.9
        assert calibration(quality=quality).share_for_drop(0.1) == pytest.approx(0.6)

    def test_where_the_weak_model_is_as_good_nothing_goes_to_the_strong_one(self) -> None:
        assert calibration(quality=rising(0.8, 0.7)).share_for_drop(0.0) == 0.0

    def test_without_outcomes_there_is_no_answer(self) -> None:
        with pytest.raises(ValueError, match="no outcomes"):
            calibration().share_for_drop(0.1)


def test_wilsons_interval() -> None:
    # Brown, Cai and DasGupta 2001: 1 of 10 gives [.0179, .4042].
    found = wilson(1, 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.0179, 0.4042), abs=1e-4)
    assert wilson(0, 10).low == 0.0
    assert wilson(0, 10).high == pytest.approx(0.2775, abs=1e-4)


def test_quality_by_share_takes_the_highest_scores_first() -> None:
    scores = np.asarray([0.9, 0.1, 0.5, 0.3])
    quality = quality_by_share(scores, np.asarray([1.0, 1, 1, 1]), np.asarray([0.0, 1, 0, 1]))
    assert [quality[i] for i in (0, 25, 50, 100)] == pytest.approx([0.5, 0.75, 1.0, 1.0])


def test_a_share_settles_on_a_threshold_and_says_what_it_realizes() -> None:
    scores = np.arange(100) / 100.0
    strong, weak = np.ones(100), (scores < 0.5).astype(float)
    found = calibration(
        quantiles=tuple(np.percentile(scores, np.arange(101)).tolist()),
        quality=quality_by_share(scores, strong, weak),
    )
    setting = settle(
        found, scores, (strong, weak), strong_share=0.3, max_quality_drop=None, replicates=200, seed=1
    )
    assert setting.realized.value == pytest.approx(0.3)
    assert setting.drop is not None
    assert setting.drop.low is not None
    assert setting.drop.value == pytest.approx(0.2)
    assert setting.drop.low < 0.2 < (setting.drop.high or 0.0)
    by_drop = settle(
        found, scores, (strong, weak), strong_share=None, max_quality_drop=0.05, replicates=0, seed=1
    )
    assert by_drop.wanted_share == pytest.approx(0.45)
    assert by_drop.drop is not None
    assert by_drop.drop.value == pytest.approx(0.05)


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", calibration(quality=rising(0, 1)))
    assert read_calibration(tmp_path / "c.json") == calibration(quality=rising(0, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", r"c\.json: score: "),
        ("[", r"c\.json: "),
        (calibration().model_copy(update={"format": 9}).model_dump_json(), "format 9 is not 1"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        read_calibration(tmp_path / "c.json")
    with pytest.raises(ArtifactError, match="`semroute calibrate` writes it"):
        read_calibration(tmp_path / "none.json")

"""Targets against cases worked out by hand."""

import numpy as np
import pytest
from semroute_lab.train import labels


def test_gain_is_the_difference_of_the_mean_qualities():
    strong = [[1.0, 0.5], [0.0, 0.0]]
    weak = [[0.25, 0.25], [1.0, 0.0]]
    assert labels.gain(strong, weak).tolist() == [0.5, -0.5]
    assert labels.gain([1, 0, 1], [0, 1, 1]).tolist() == [1.0, -1.0, 0.0]


def test_only_strong_is_one_exactly_where_the_strong_model_is_right_and_the_weak_one_wrong():
    assert labels.only_strong([1, 1, 0, 0], [0, 1, 0, 1]).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_only_strong_multiplies_the_shares_of_good_and_bad_answers():
    # Strong right in 3 of 4, weak wrong in 1 of 2: 0.75 * 0.5.
    assert labels.only_strong([[1, 1, 1, 0]], [[1, 0]]).tolist() == [0.375]


def test_r_det_is_one_where_the_weak_model_is_at_least_as_good():
    assert labels.r_det([0.9, 0.5, 0.2], [0.8, 0.5, 0.7]).tolist() == [0.0, 1.0, 1.0]


def test_r_prob_counts_the_pairs_of_answers_in_which_the_weak_one_is_at_least_as_good():
    # Pairs (weak, strong): (.2,.4) no, (.2,.1) yes, (.6,.4) yes, (.6,.1) yes.
    assert labels.r_prob([[0.4, 0.1]], [[0.2, 0.6]]).tolist() == [0.75]


def test_r_prob_of_one_answer_each_is_r_det():
    rng = np.random.default_rng(0)
    strong, weak = rng.random(50), rng.random(50)
    assert labels.r_prob(strong, weak).tolist() == labels.r_det(strong, weak).tolist()


def test_r_trans_forgives_a_gap_up_to_t():
    # Gaps weak - strong: -.5, -.3, +.1.
    strong, weak = [[0.8, 0.6, 0.2]], [[0.3]]
    assert labels.r_trans(strong, weak, 0.0).tolist() == pytest.approx([1 / 3])
    assert labels.r_trans(strong, weak, 0.3).tolist() == pytest.approx([2 / 3])
    assert labels.r_trans(strong, weak, 0.5).tolist() == pytest.approx([1.0])


def test_the_mean_absolute_difference_is_over_all_ordered_pairs():
    # Of 0, .5, 1: 2 * (.5 + 1 + .5) / 9.
    assert labels.mean_absolute_difference(np.array([1.0, 0.0, 0.5])) == pytest.approx(4 / 9)


def test_the_mean_absolute_difference_agrees_with_the_double_sum():
    y = np.random.default_rng(1).random(200)
    assert labels.mean_absolute_difference(y) == pytest.approx(np.abs(y[:, None] - y[None, :]).mean())


def test_t_star_spreads_the_labels_most():
    # With one answer each and gaps -1 and -.5, t between .5 and 1 makes the labels 0 and 1:
    # spread 2 * 1 / 4; any smaller or larger t makes them equal.
    t = labels.best_t([1.0, 0.5], [0.0, 0.0])
    assert t == pytest.approx(0.5)
    assert labels.r_trans([1.0, 0.5], [0.0, 0.0], t).tolist() == [0.0, 1.0]


def test_t_star_is_zero_where_the_weak_model_never_loses():
    assert labels.best_t([0.1, 0.2], [0.5, 0.9]) == 0.0


def test_a_tie_is_no_reason_to_pay_unless_it_is_given_credit():
    assert labels.win_probability([3], [2], [5]).tolist() == [0.3]
    assert labels.win_probability([3], [2], [5], tie_credit=0.5).tolist() == [0.4]


def test_no_judgment_is_no_label():
    assert np.isnan(labels.win_probability([0], [0], [0])).all()


@pytest.mark.parametrize(
    ("kind", "expected"), [("only-strong", 0.25), ("det", 1.0), ("prob", 0.25), ("trans", 0.0), ("win", 0.5)]
)
def test_targets_are_high_where_the_strong_model_is_needed(kind, expected):
    # Pairs (strong, weak): (1, 1) tie, (1, 0) win, (1, 1) tie, (1, 0) win; half the gaps are 0, half -1.
    strong, weak = [[1.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]
    found, info = labels.targets(kind, strong, weak, t=1.0)
    assert found[0] == {"only-strong": 0.5, "prob": 0.5, "win": 0.75}.get(kind, expected)
    assert found[1] == 0.0
    assert info["kind"] == kind


def test_trans_uses_t_star():
    found, info = labels.targets("trans", [1.0, 0.5], [0.0, 0.0])
    assert (found.tolist(), info["t"]) == ([1.0, 0.0], 0.5)


def test_answers_that_are_missing_do_not_count():
    strong, weak = [[1.0, np.nan], [np.nan, np.nan]], [[0.0, 1.0], [1.0, 0.0]]
    for kind, expected in (("only-strong", 0.5), ("det", 1.0), ("prob", 0.5), ("trans", 0.5), ("win", 0.75)):
        found, _ = labels.targets(kind, strong, weak, t=0.0)
        assert found[0] == expected
        assert np.isnan(found[1])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="none of only-strong, det, prob, trans, win"):
        labels.targets("best", [1.0], [0.0])

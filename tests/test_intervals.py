"""Intervals over seeds, against printed tables and against chance itself."""

import numpy as np
import pytest

from tpcnn.intervals import interval_of_difference, interval_of_mean


@pytest.mark.parametrize(("runs", "printed"), [(3, 4.303), (5, 2.776), (8, 2.365), (31, 2.042)])
def test_the_interval_of_a_mean_has_the_factor_of_printed_tables(runs, printed):
    values = np.random.default_rng(runs).normal(size=runs)
    mean, half = interval_of_mean(values)
    assert mean == pytest.approx(sum(values) / runs)
    assert half == pytest.approx(printed * np.std(values, ddof=1) / np.sqrt(runs), rel=1e-3)


def test_groups_of_equal_spread_have_the_factor_of_the_chapter_on_accuracy():
    a = np.array([90.1, 90.4, 90.9])
    difference, half = interval_of_difference(a + 1, a)
    assert difference == pytest.approx(1)
    assert half == pytest.approx(2.776 * np.sqrt(2 * a.var(ddof=1) / 3), rel=1e-3)


@pytest.mark.parametrize(("spread", "runs"), [(1, (3, 3)), (10, (8, 8)), (10, (4, 9))])
def test_nineteen_of_twenty_intervals_hold_the_true_difference(spread, runs):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        a, b = rng.normal(2, 1, runs[0]), rng.normal(0, spread, runs[1])
        difference, half = interval_of_difference(a, b)
        held += abs(difference - 2) <= half
    assert held / 2000 == pytest.approx(0.95, abs=0.03)


def test_runs_without_any_spread():
    assert interval_of_difference([1, 1], [0, 0]) == (1, 0)
    assert interval_of_mean([1, 1]) == (1, 0)


@pytest.mark.parametrize("runs", [[], [0.9], 0.9, [[0.9, 0.8], [0.7, 0.6]]])
def test_what_has_no_spread_is_refused(runs):
    with pytest.raises(ValueError, match="at least two numbers"):
        interval_of_mean(runs)
    with pytest.raises(ValueError, match=r"^b: expected"):
        interval_of_difference([0.9, 0.8], runs)

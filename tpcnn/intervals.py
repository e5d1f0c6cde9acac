"""How far a difference that was measured can be from the true one: 95% intervals over seeds."""

import numpy as np
from scipy import stats


def interval_of_difference(a, b) -> tuple[float, float]:
    """Return the difference of the means of two groups of runs, and half its 95% interval.

    The runs of the two groups have nothing in common, and their spreads may differ (Welch 1947).

    Args:
        a: one number for each run, such as its accuracy; shape (r,), r at least 2.
        b: those of the other group; it may have another number of runs.

    Returns:
        The mean of `a` less that of `b`, and the distance from it to either end of the interval.

    Raises:
        ValueError: a group is no list of two numbers or more.
    """
    a, b = _runs("a", a), _runs("b", b)
    difference = a.mean() - b.mean()
    if a.var() == b.var() == 0:  # a t distribution needs a spread
        return float(difference), 0.0
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return float(difference), float((interval.high - interval.low) / 2)


def interval_of_mean(values) -> tuple[float, float]:
    """Return the mean of some runs, and half its 95% interval.

    For two ways of training that share their seeds, or their validation images, give it the
    differences, pair by pair: what a pair has in common drops out.

    Args:
        values: one number for each run or pair; shape (r,), r at least 2.

    Returns:
        The mean, and the distance from it to either end of the interval.

    Raises:
        ValueError: `values` is no list of two numbers or more.
    """
    values = _runs("values", values)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error)


def _runs(argument: str, values) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"{argument}: expected a list of at least two numbers, one for each run, got an array "
            f"of shape {values.shape}. Train with a second seed: one run has no spread."
        )
    return values

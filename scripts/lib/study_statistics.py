"""Means of several seeds, differences paired by seed, and what a test of these can tell."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, median, stdev
from typing import NamedTuple

POWER, LEVEL = 0.8, 0.05


class Difference(NamedTuple):
    """Values of a row minus those of the baseline, by seed."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def p(self) -> float | None:
        """The two-sided p of a paired t-test; None for one seed, or if all differences are equal.

        It assumes that the differences are independent and normally distributed. Their being zero on average
        is what it tests: for training again, not for other images.
        """
        if len(self.values) < 2 or not (deviation := stdev(self.values)):
            return None
        from scipy.special import stdtr  # the distribution function of Student's t

        t = self.mean * math.sqrt(len(self.values)) / deviation
        return float(2 * stdtr(len(self.values) - 1, -abs(t)))


def paired(row: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the differences of two rows' values by seed, of the seeds that both have."""
    return Difference([value - baseline[seed] for seed, value in sorted(row.items()) if seed in baseline])


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def with_error(values: Sequence[float], sign: str = "") -> str:
    """Return the mean, of several values with its standard error, of none a dash."""
    if not values:
        return "-"
    error = standard_error(values)
    return f"{mean(values):{sign}.2f}" + ("" if error is None else f" ± {error:.2f}")


def typical_deviation(differences: Sequence[Difference]) -> float | None:
    """Return the standard deviation of the differences by seed within a typical row; None if it is unknown.

    It is that of the median row (a few rows that vary much do not count), divided by what the median would be
    of rows whose true standard deviation is 1: with few seeds most rows seem to vary less than they do.
    """
    most = max((len(one.values) for one in differences), default=0)
    if most < 2:
        return None
    from scipy.special import chdtri  # quantiles of the chi-squared distribution

    rows = [stdev(one.values) for one in differences if len(one.values) == most]
    return median(rows) / math.sqrt(float(chdtri(most - 1, 0.5)) / (most - 1))


def detectable(deviation: float, seeds: int) -> float | None:
    """Return the true difference that a paired t-test of a row finds with a probability of ``POWER``.

    The test is two-sided at ``LEVEL``; None for fewer than two seeds.

    Args:
        deviation: the standard deviation of the differences by seed.
        seeds: how many.
    """
    if seeds < 2:
        return None
    from scipy.special import nctdtr, stdtrit

    freedom, limit = seeds - 1, float(stdtrit(seeds - 1, 1 - LEVEL / 2))
    low, high = 0.0, 1e3  # of the noncentrality, whose larger values make it surer that t exceeds the limit
    for _ in range(100):
        middle = (low + high) / 2
        power = 1 - float(nctdtr(freedom, middle, limit))  # the other tail counts below a thousandth
        low, high = (middle, high) if power < POWER else (low, middle)
    return high * deviation / math.sqrt(seeds)

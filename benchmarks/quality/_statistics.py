"""Formats values over several seeds."""

from statistics import mean, stdev


def mean_and_deviation(values: list[float]) -> str:
    """Mean ± sample standard deviation; only the mean for a single value."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

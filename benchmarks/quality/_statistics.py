"""How the tables of several seeds show a number."""

from statistics import mean, stdev


def mean_and_deviation(values: list[float]) -> str:
    """Mean ± sample standard deviation; of one value the mean alone."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

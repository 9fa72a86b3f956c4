"""Rounding and formatting of amounts of money."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

# US dollars in API schemas, rounded to a millionth.
Dollars = Annotated[float, AfterValidator(lambda value: round(value, 6))]


def known_sum(costs: Iterable[float | None]) -> float | None:
    """The sum of the known costs; None if all are unknown."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def in_dollars(value: float) -> str:
    """Format `value` with three decimals, such as 0.004; smaller positive values as <0.001."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"

"""Rounding and formatting of amounts of money."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

# Of a view: US dollars, rounded to a millionth.
Dollars = Annotated[float, AfterValidator(lambda value: round(value, 6))]


def known_sum(costs: Iterable[float | None]) -> float | None:
    """The sum of the costs that are known; None if none is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known else None


def in_dollars(value: float) -> str:
    """Format `value` to a tenth of a cent: 0.004; smaller positive values: <0.001."""
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"

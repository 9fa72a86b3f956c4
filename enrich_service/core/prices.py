"""Prices of common models, so that runs show their cost without configuration.

From OpenAI's price list, standard tier, as of AS_OF. `ENRICH_PRICES` adds and overrides prices.
"""

from collections.abc import Mapping
from typing import Final

AS_OF: Final = "2025-09"
# US dollars per million input and output tokens.
PRICES: Final[Mapping[str, tuple[float, float]]] = {
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "o4-mini": (1.1, 4.4),
    "gpt-3.5-turbo": (0.5, 1.5),
}


def with_known_prices(prices: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The prices of this table, overridden by the operator's `prices`."""
    return {**PRICES, **prices}

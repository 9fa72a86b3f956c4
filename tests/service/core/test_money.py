import pytest
from pydantic import BaseModel

from enrich_service.core.money import Dollars, in_dollars
from enrich_service.core.terminal.console import show


class Cost(BaseModel):
    cost_usd: Dollars | None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0044000000000000055, "0.004"),
        (0.1 + 0.2, "0.300"),
        (12.3456, "12.346"),
        (0.00021, "<0.001"),
        (0, "0.000"),
    ],
)
def test_a_table_shows_costs_to_a_tenth_of_a_cent(capsys, value, shown):
    assert in_dollars(value) == shown
    show([Cost(cost_usd=value), Cost(cost_usd=None)], json=False)
    assert capsys.readouterr().out.split() == ["cost_usd", shown]


def test_json_has_costs_to_a_millionth_of_a_dollar(capsys):
    show(Cost(cost_usd=0.0044000000000000055), json=True)
    assert '"cost_usd": 0.0044\n' in capsys.readouterr().out

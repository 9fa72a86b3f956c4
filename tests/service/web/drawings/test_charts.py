import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enrich_service.web.drawings.charts import HEIGHT, WIDTH, bar_chart, line_chart, ticks

finite = st.floats(-1e9, 1e9)


@given(finite, finite)
def test_ticks_are_few_even_and_enclose_the_values(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert found[0] <= low + slack and found[-1] >= high - slack
    steps = [y - x for x, y in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=slack)


@given(st.lists(st.tuples(st.integers(0, 1000), finite), min_size=1), st.booleans())
def test_every_point_lies_on_the_drawing(points, log):
    chart = line_chart("t", {"a": points}, x_label="x", log=log)
    if chart is None:
        assert log and all(y < 1e-100 for _, y in points)
        return
    for pair in chart.lines[0].points.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= WIDTH and -1 <= y <= HEIGHT


def test_what_is_not_finite_is_left_out():
    assert line_chart("t", {"a": [(1, math.nan)]}, x_label="x") is None
    chart = line_chart("t", {"a": [(1, 1.0), (2, math.inf), (3, 2.0)]}, x_label="x")
    assert len(chart.lines[0].points.split()) == 2


def test_a_single_point_is_drawn_as_a_dot():
    assert len(line_chart("t", {"a": [(1, 3.0)]}, x_label="x").lines[0].dots) == 1


def test_bars_of_one_name_have_one_colour_and_heights_in_proportion():
    chart = bar_chart("t", [("one", {"a": 10.0, "b": 20.0}), ("two", {"b": 40.0})])
    a, b, other_b = chart.bars
    assert b.colour == other_b.colour != a.colour
    assert b.height == pytest.approx(2 * a.height, abs=0.2)
    assert bar_chart("t", []) is None

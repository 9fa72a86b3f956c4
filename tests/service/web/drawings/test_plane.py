import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import Move, TextPlane
from enrich_service.web.drawings.plane import (
    LETTER_WIDTH,
    LINE_HEIGHT,
    MAX_HEIGHT,
    WIDTH,
    draw_plane,
)

number = st.floats(-100, 100)
place = st.tuples(number, number)
moves = st.lists(
    st.builds(Move, name=st.text("abc ", min_size=1, max_size=40), before=place, after=place),
    min_size=1,
    max_size=30,
)


def plane(classes) -> TextPlane:
    return TextPlane(before="name", after="text", explained=0.5, classes=tuple(classes))


def boxes(drawn):
    for one in drawn.arrows:
        if one.label:
            width = LETTER_WIDTH * len(one.label)
            left = one.label_x - (width if one.anchor == "end" else 0)
            middle = one.label_y - LINE_HEIGHT / 4
            yield left, middle - LINE_HEIGHT / 2, left + width, middle + LINE_HEIGHT / 2


@given(moves)
def test_all_lies_on_the_drawing_and_no_label_covers_another(classes):
    drawn = draw_plane(plane(classes))
    assert len(drawn.arrows) == len(classes) and 0 < drawn.height <= MAX_HEIGHT + 1
    for one in drawn.arrows:
        assert all(-1 <= x <= WIDTH + 1 for x in (one.x1, one.x2))
        assert all(-1 <= y <= drawn.height + 1 for y in (one.y1, one.y2))
    for a, b in combinations(list(boxes(drawn)), 2):
        assert a[2] <= b[0] + 0.2 or b[2] <= a[0] + 0.2 or a[3] <= b[1] + 0.2 or b[3] <= a[1] + 0.2


def test_both_axes_have_one_scale_and_y_grows_upwards():
    (one,) = draw_plane(plane([Move(name="a", before=(0, 0), after=(3, 4))])).arrows
    run, rise = one.x2 - one.x1, one.y1 - one.y2
    assert rise / run == pytest.approx(4 / 3, rel=1e-3)


def test_classes_that_come_first_get_their_labels_first():
    crowd = [Move(name=f"class {n}", before=(0, 0), after=(1, n / 1000)) for n in range(40)]
    far = Move(name="far", before=(-9, -9), after=(9, 9))
    drawn = draw_plane(plane([*crowd, far]), first=["class 7"])
    labels = [one.label for one in drawn.arrows if one.label]
    assert labels[-1] == "class 7" and "far" in labels  # what is drawn last lies above
    assert len(labels) == drawn.labelled < 41


def test_what_is_not_finite_is_left_out():
    odd = Move(name="odd", before=(math.nan, 0), after=(0, math.inf))
    fine = Move(name="fine", before=(0, 0), after=(1, 1))
    assert [one.name for one in draw_plane(plane([odd, fine])).arrows] == ["fine"]

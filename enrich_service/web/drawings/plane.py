"""Coordinates of arrows on a plane for inline SVG, with labels that do not overlap."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contract import Move, TextPlane

WIDTH, HIGHEST, MARGIN = 960, 760, 24
LETTER, LINE = 7.0, 14  # approximate size of a letter
GAP = 6  # between a point and its label
LONGEST = 28  # letters of a label

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Arrow:
    """The arrow of one class from its name to its text, with a label if there is room."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""
    label_x: float = 0.0
    label_y: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True)
class Plane:
    """A drawing; labelled arrows come last, on top of the others."""

    arrows: tuple[Arrow, ...]
    labelled: int
    height: float
    width: int = WIDTH


def draw_plane(plane: TextPlane, first: Sequence[str] = ()) -> Plane:
    """`plane` with both axes on one scale, at most HIGHEST high.

    Labels go to the classes of `first`, then to those that moved furthest; one that would cover
    another is left out.
    """
    places = [place for move in plane.classes for place in (move.before, move.after)]
    finite = [place for place in places if all(map(math.isfinite, place))] or [(0.0, 0.0)]
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    scale = min(
        (WIDTH - 2 * MARGIN) / max(right - left, 1e-9),
        (HIGHEST - 2 * MARGIN) / max(high - low, 1e-9),
    )
    height = round((high - low) * scale + 2 * MARGIN, 1)

    def at(place: tuple[float, float]) -> tuple[float, float]:
        x = WIDTH / 2 + (place[0] - (left + right) / 2) * scale
        y = height / 2 - (place[1] - (low + high) / 2) * scale
        return round(x, 1), round(y, 1)

    rank = {name: number for number, name in reversed(list(enumerate(first)))}

    def weight(one: Move) -> tuple[float, float]:
        return rank.get(one.name, len(rank)), -math.dist(one.before, one.after)

    taken: list[Box] = []
    labelled: list[Arrow] = []
    bare: list[Arrow] = []
    for move in sorted(plane.classes, key=weight):
        if not all(map(math.isfinite, (*move.before, *move.after))):
            continue
        arrow = Arrow(move.name, *at(move.before), *at(move.after))
        with_label = _labelled(arrow, taken, height)
        (bare if with_label is None else labelled).append(with_label or arrow)
    return Plane((*bare, *reversed(labelled)), len(labelled), height)


def _labelled(arrow: Arrow, taken: list[Box], height: float) -> Arrow | None:
    """`arrow` with a label that overlaps none of the `taken` boxes; adds the label's box."""
    label = arrow.name if len(arrow.name) <= LONGEST else f"{arrow.name[: LONGEST - 1]}…"
    for x, y, anchor, box in _rooms(arrow, LETTER * len(label)):
        left, top, right, bottom = box
        inside = left >= 0 and top >= 0 and right <= WIDTH and bottom <= height
        if inside and not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
            for other in taken
        ):
            taken.append(box)
            return Arrow(arrow.name, arrow.x1, arrow.y1, arrow.x2, arrow.y2, label, x, y, anchor)
    return None


def _rooms(arrow: Arrow, width: float) -> Iterator[tuple[float, float, str, Box]]:
    """Candidate boxes of a label: beyond the tip of its arrow, then on the other side."""
    x, y = arrow.x2, arrow.y2
    right = (x + GAP, "start", x + GAP)
    left = (x - GAP, "end", x - GAP - width)
    for at, anchor, start in (right, left) if arrow.x2 >= arrow.x1 else (left, right):
        for down in (0, -LINE / 2, LINE / 2):
            middle = y + down
            box = (start, middle - LINE / 2, start + width, middle + LINE / 2)
            yield round(at, 1), round(middle + LINE / 4, 1), anchor, box

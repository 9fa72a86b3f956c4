"""Coordinates of arrows on a plane for inline SVG, with labels that do not overlap."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contract import Move, TextPlane

WIDTH, MAX_HEIGHT, MARGIN = 960, 760, 24
LETTER_WIDTH, LINE_HEIGHT = 7.0, 14  # approximate
GAP = 6  # between a point and its label
MAX_LABEL = 28  # letters

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
    """A drawing; `labelled`: number of arrows with a label, which are drawn last, on top."""

    arrows: tuple[Arrow, ...]
    labelled: int
    height: float
    width: int = WIDTH


def draw_plane(plane: TextPlane, first: Sequence[str] = ()) -> Plane:
    """Draw `plane` with the same scale on both axes, at most MAX_HEIGHT high.

    The classes of `first` get labels first, then those that moved furthest. A label that would
    overlap another is left out.
    """
    points = [point for move in plane.classes for point in (move.before, move.after)]
    finite = [point for point in points if all(map(math.isfinite, point))] or [(0.0, 0.0)]
    left, right = min(x for x, _ in finite), max(x for x, _ in finite)
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    scale = min(
        (WIDTH - 2 * MARGIN) / max(right - left, 1e-9),
        (MAX_HEIGHT - 2 * MARGIN) / max(high - low, 1e-9),
    )
    height = round((high - low) * scale + 2 * MARGIN, 1)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x = WIDTH / 2 + (point[0] - (left + right) / 2) * scale
        y = height / 2 - (point[1] - (low + high) / 2) * scale
        return round(x, 1), round(y, 1)

    rank = {name: number for number, name in reversed(list(enumerate(first)))}

    def priority(move: Move) -> tuple[float, float]:
        return rank.get(move.name, len(rank)), -math.dist(move.before, move.after)

    label_boxes: list[Box] = []
    labelled: list[Arrow] = []
    unlabelled: list[Arrow] = []
    for move in sorted(plane.classes, key=priority):
        if not all(map(math.isfinite, (*move.before, *move.after))):
            continue
        arrow = Arrow(move.name, *at(move.before), *at(move.after))
        with_label = _labelled(arrow, label_boxes, height)
        (unlabelled if with_label is None else labelled).append(with_label or arrow)
    return Plane((*unlabelled, *reversed(labelled)), len(labelled), height)


def _labelled(arrow: Arrow, label_boxes: list[Box], height: float) -> Arrow | None:
    """`arrow` with a label that overlaps no box, or None; adds the label's box to `label_boxes`."""
    label = arrow.name if len(arrow.name) <= MAX_LABEL else f"{arrow.name[: MAX_LABEL - 1]}…"
    for x, y, anchor, box in _label_positions(arrow, LETTER_WIDTH * len(label)):
        left, top, right, bottom = box
        inside = left >= 0 and top >= 0 and right <= WIDTH and bottom <= height
        if inside and not any(
            left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
            for other in label_boxes
        ):
            label_boxes.append(box)
            return Arrow(arrow.name, arrow.x1, arrow.y1, arrow.x2, arrow.y2, label, x, y, anchor)
    return None


def _label_positions(arrow: Arrow, width: float) -> Iterator[tuple[float, float, str, Box]]:
    """Candidate positions of a label: beyond the tip of its arrow, then on the other side.

    Yields x, y, text anchor and box.
    """
    x, y = arrow.x2, arrow.y2
    right = (x + GAP, "start", x + GAP)
    left = (x - GAP, "end", x - GAP - width)
    for at, anchor, start in (right, left) if arrow.x2 >= arrow.x1 else (left, right):
        for down in (0, -LINE_HEIGHT / 2, LINE_HEIGHT / 2):
            middle = y + down
            box = (start, middle - LINE_HEIGHT / 2, start + width, middle + LINE_HEIGHT / 2)
            yield round(at, 1), round(middle + LINE_HEIGHT / 4, 1), anchor, box

"""The chart of a model card: accuracy against milliseconds for each format and model."""

import io
from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from distill.export.verify import FormatRow

STUDENT, OTHERS, GREY = "#2563a8", "#e3b04b", "#9aa4b2"  # readable on white and on black
PANEL: Final = (4.2, 3.4)  # inches


def speed_chart(rows: Sequence[FormatRow], students: int) -> bytes:
    """An SVG of top-1 against milliseconds for one image, with a panel for each split.

    The first `students` rows are the formats of the student, the others are other models.
    """
    splits = ["seen", *(["unseen"] if all(row.unseen is not None for row in rows) else [])]
    # Deterministic bytes, and text as text elements.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed", "font.size": 9}):
        figure = Figure(figsize=(PANEL[0] * len(splits), PANEL[1]), layout="constrained")
        panels = figure.subplots(1, len(splits), squeeze=False)[0]
        for axes, split in zip(panels, splits, strict=True):
            _draw(axes, rows, split, students)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Axes, rows: Sequence[FormatRow], split: str, students: int) -> None:
    for index, row in enumerate(rows):
        point = (row.speed.ms, getattr(row, split))
        axes.scatter(*point, 36, color=STUDENT if index < students else OTHERS, zorder=3)
        # Formats of one student have nearly the same accuracy: alternate their labels vertically.
        axes.annotate(
            row.name,
            point,
            (0, 7 + 10 * (index // 2 % 3) if index % 2 else -13 - 10 * (index // 2 % 3)),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=GREY,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.2, 0.3)
    axes.set_title(f"{split} classes", color=GREY)
    axes.set_xlabel("ms for one image", color=GREY)
    axes.set_ylabel("top-1 %", color=GREY)
    axes.tick_params(which="both", colors=GREY)
    axes.spines[:].set_color(GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GREY, alpha=0.25)

"""The picture of the README shows the numbers of its table."""

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from demo.draw_result import draw, read_table

ROOT = Path(__file__).parents[2]


def test_the_committed_picture_shows_the_numbers_of_the_table():
    table = read_table(ROOT / "README.md")
    picture = (ROOT / "docs/images/demo-result.svg").read_text("utf-8")
    shown = re.findall(r">(\d+\.\d)</text>", picture)
    wanted = [f"{value:.1f}" for row in table.values() for value in row]
    assert sorted(shown) == sorted(wanted), "run: python -m demo.draw_result"


def test_every_bar_is_as_high_as_its_number():
    table = read_table(ROOT / "README.md")
    panels = draw(table).axes
    for panel, model in zip(panels, ("teacher", "student"), strict=True):
        heights = [bar.get_height() for bar in panel.patches]
        assert heights == [value for (of, _), row in table.items() if of == model for value in row]


def test_a_page_without_the_table_is_reported(tmp_path):
    (tmp_path / "README.md").write_text("# Nothing\n")
    with pytest.raises(ValueError, match="has no table"):
        read_table(tmp_path / "README.md")

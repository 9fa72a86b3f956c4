"""Draws the table of the demo's results as a bar chart: `python -m demo.draw_result`.

The numbers are read from the table in README.md, so that chart and table cannot differ.
"""

import argparse
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (teacher|student), ([^|]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
COLOURS = {"names": "#a3adba", "names and descriptions": "#2563a8"}
CONTROL = "#e3b04b"  # shuffled descriptions


def read_table(readme: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Top-1 in percent on seen and unseen classes, by (model, text)."""
    rows = ROW.findall(readme.read_text(encoding="utf-8"))
    if not rows:
        raise ValueError(
            f"{readme} has no table with rows such as '| teacher, names | 1.0 | 2.0 |'"
        )
    return {(model, text): (float(seen), float(unseen)) for model, text, seen, unseen in rows}


def draw(table: dict[tuple[str, str], tuple[float, float]]) -> Figure:
    """A panel for the teacher and one for the student, with bars for seen and unseen classes."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    texts = list(dict.fromkeys(text for _, text in table))
    for panel, model in zip(panels, ("teacher", "student"), strict=True):
        for index, text in enumerate(texts):
            left = [group + (index - (len(texts) - 1) / 2) * 0.28 for group in (0, 1)]
            bars = panel.bar(left, table[model, text], 0.26, color=COLOURS.get(text, CONTROL))
            panel.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
            bars.set_label(text)
        panel.set_title(f"{model} ({'CLIP' if model == 'teacher' else 'small CNN'})", fontsize=11)
        panel.set_xticks([0, 1], ["seen classes", "unseen classes"], fontsize=10)
        panel.tick_params(length=0)
        panel.set_ylim(0, 110)
        panel.set_yticks(range(0, 101, 25))
        panel.grid(axis="y", color="#e5e7eb")
        panel.set_axisbelow(True)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_ylabel("top-1 accuracy, %")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(texts), frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "images" / "demo-result.svg", help="SVG or PNG"
    )
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    # Deterministic bytes, and text as text elements.
    matplotlib.rcParams |= {"svg.hashsalt": "demo", "svg.fonttype": "none"}
    metadata = {"Date": None} if out.suffix == ".svg" else None
    draw(read_table(ROOT / "README.md")).savefig(out, dpi=150, metadata=metadata)
    print(out)


if __name__ == "__main__":
    main()

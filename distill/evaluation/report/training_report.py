"""The report of a training job: report.json, and the self-contained page report.html.

The page loads no other files: charts are inline SVG, and heat maps are embedded images. Colours are
CSS variables, so that charts follow the reader's light or dark mode.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from pydantic import ValidationError

from contract import Accuracy, Report, TestViews, first_error_line
from distill.data.files.atomic_file import write_atomically
from distill.errors import DataError
from distill.evaluation.report.images import similarity_order

if TYPE_CHECKING:  # matplotlib takes a second to import: only where a chart is drawn
    from matplotlib.axes import Axes

CONTROL: Final = "shuffled"  # the texts of the run, shuffled over the classes
NORMALISED: Final = "normalised"  # the texts of the run, with scores standardised by ScoreNorm
TEXT_TITLES: Final = {
    "name": "names",
    "name+description": "descriptions",
    "attributes": "attributes",
    "ensemble": "many texts",
    "captions": "captions",
    CONTROL: "shuffled control",
    NORMALISED: "scores normalised",
}
VIEWS: Final[Mapping[TestViews, str]] = {
    "whole": "the whole of each image",
    "centre": "the centre crop of each image, 7/8 of the side",
    "ten-crop": "ten crops of each image, whose features were averaged",
}
NAMED_CLASSES: Final = 40  # a heat map of more classes shows no names
# Unique placeholder colours, which are replaced by CSS variables of the page.
INK, LINE, SERIES = "#010203", "#010204", tuple(f"#0103{n:02x}" for n in range(1, 7))
VARIABLES: Final = {INK: "--muted", LINE: "--line"} | {
    colour: f"--series-{n}" for n, colour in enumerate(SERIES, start=1)
}

templates = Environment(
    loader=PackageLoader("distill.evaluation.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
)


def read_report(folder: Path) -> Report:
    """The report of the finished run in `folder`.

    Raises:
        DataError: there is no finished run, or its report is damaged or of another version.
    """
    path = folder / "report.json"
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError:
        if (folder / "checkpoint.safetensors").exists():
            raise DataError(
                f"the training in {folder} is not finished (it has no {path.name}): finish it with "
                "--resume"
            ) from None
        raise DataError(
            f"{folder} is not the folder of a training: it has no {path.name}"
        ) from None
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged or was written by another version ({first_error_line(error)}): "
            "train the student again"
        ) from None


def write_report(
    report: Report,
    out: Path,
    *,
    similarity: Mapping[str, NDArray[np.float32]],
    names: Sequence[str],
) -> None:
    """Write report.json and report.html to the folder `out`, each atomically.

    `similarity` maps a text strategy to its cosines [classes, classes], the strategy before
    enrichment first; `names` are the class names of the rows.

    Raises:
        DataError: `out` cannot be written to.
    """
    page = render(report, similarity=similarity, names=names)
    write_files(out, {"report.html": page, "report.json": report.model_dump_json(indent=1) + "\n"})


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Write `files`, texts by file name, to the folder `out`.

    Raises:
        DataError: `out` cannot be written to.
    """
    try:
        for name, text in files.items():
            write_atomically(out / name, text)
    except OSError as error:
        raise DataError(
            f"cannot write the report to {out} ({error.strerror}): free some space or choose "
            "another folder, then run `distill report` on it"
        ) from None


def render(
    report: Report, *, similarity: Mapping[str, NDArray[np.float32]], names: Sequence[str]
) -> str:
    """The HTML page of `report`; arguments as in `write_report`."""
    order = similarity_order(next(iter(similarity.values()))) if similarity else []
    by_text = {bank.text: bank for bank in report.diagnostics}
    return templates.get_template("report.html").render(
        report=report,
        text_titles=TEXT_TITLES,
        views=VIEWS,
        gains=[gain for model in ("student", "teacher") if (gain := _gain(report, model))],
        headline=headline(report),
        has_unseen=not report.accuracies or any(x.split == "unseen" for x in report.accuracies),
        held_out=sum(x.images for x in report.preflight.splits if x.held_out)
        if report.preflight
        else 0,
        rows=_table(report.accuracies),
        top=max((row.top1 for row in report.accuracies), default=0) or 1,
        curves=_curves(report),
        reliability=_reliability(report),
        forecast_chart=_forecast_chart(report),
        spectrum=_spectrum(report),
        maps=_heat_maps(similarity, order, names),
        order=[names[row] for row in order],
        confusable=by_text[report.config.text_strategy].confusable
        if report.config.text_strategy in by_text
        else (),
    )


@dataclass(frozen=True)
class Gain:
    """The gain of a model by enrichment on the unseen classes; accuracies are top-1 in percent."""

    model: Literal["teacher", "student"]
    classes: int
    name: float
    enriched: float
    control: float | None
    error: float  # two standard errors of the gain, in percentage points

    @property
    def points(self) -> float:
        """Percentage points above the plain names; negative for a loss."""
        return self.enriched - self.name

    @property
    def is_clear(self) -> bool:
        """Whether the gain exceeds the sampling error of the images."""
        return abs(self.points) > self.error

    @property
    def is_beaten_by_control(self) -> bool:
        """Whether shuffled descriptions are as good, so that their content is not the reason."""
        return self.control is not None and self.control >= self.enriched - self.error


def _gain(report: Report, model: Literal["teacher", "student"]) -> Gain | None:
    rows = {
        row.text: row for row in report.accuracies if row.model == model and row.split == "unseen"
    }
    enriched, name = rows.get(report.config.text_strategy), rows.get("name")
    if enriched is None or name is None or report.config.text_strategy == "name":
        return None
    variance = _standard_error(name) ** 2 + _standard_error(enriched) ** 2
    return Gain(
        model=model,
        classes=enriched.classes,
        name=name.top1,
        enriched=enriched.top1,
        control=rows[CONTROL].top1 if CONTROL in rows else None,
        error=2 * math.sqrt(variance),
    )


def _standard_error(row: Accuracy) -> float:
    """Standard error over images in percentage points; ignores the sampling of classes."""
    share = row.top1 / 100
    return 100 * math.sqrt(share * (1 - share) / row.images) if row.images else 0.0


def headline(report: Report) -> str:
    """One or two sentences on the gain by enrichment on unseen classes."""
    gain = _gain(report, "student")
    if gain is None:
        row = next(
            (r for r in report.accuracies if r.model == "student" and r.split == "unseen"), None
        )
        if row is None:
            return _seen_headline(report)
        return (
            f"Trained only on {TEXT_TITLES[report.config.text_strategy]}, the student recognises "
            f"{row.top1:.1f} % of the images of {row.classes} unseen classes."
        )
    texts = TEXT_TITLES[report.config.text_strategy]
    numbers = f"from {gain.name:.1f} % with plain names to {gain.enriched:.1f} %"
    if not gain.is_clear:
        verdict = f"made no significant difference to the student: {numbers}"
    elif gain.points > 0:
        verdict = f"raised the student's accuracy by {gain.points:.1f} points, {numbers}"
    else:
        verdict = f"lowered the student's accuracy by {-gain.points:.1f} points, {numbers}"
    sentence = f"On {gain.classes} classes never seen in training, {texts} {verdict}"
    if gain.control is None:
        return f"{sentence}."
    if gain.is_clear and gain.points > 0 and gain.is_beaten_by_control:
        return (
            f"{sentence}. But the same texts, shuffled over the classes, reach "
            f"{gain.control:.1f} %, so the gain does not come from their content."
        )
    return f"{sentence}. The same texts, shuffled over the classes, reach {gain.control:.1f} %."


def _seen_headline(report: Report) -> str:
    """One sentence on the accuracy on seen classes, for a run without unseen ones."""
    rows = [row for row in report.accuracies if row.model == "student" and row.split == "seen"]
    chosen = [row for row in rows if row.text == report.config.text_strategy]
    if not chosen:
        return "This run was not evaluated."
    return (
        f"The student recognises {chosen[0].top1:.1f} % of the validation images of "
        f"{chosen[0].classes} classes that it was trained on; there are no unseen classes."
    )


def _table(rows: Iterable[Accuracy]) -> list[tuple[str, str, dict[str, Accuracy]]]:
    """Model, text and accuracies by split, in the order of the report."""
    table: dict[tuple[str, str], dict[str, Accuracy]] = {}
    for row in rows:
        table.setdefault((row.model, row.text), {})[row.split] = row
    return [(model, text, splits) for (model, text), splits in table.items()]


def _draw(
    draw: Callable[["Axes"], None], title: str, *, width: float = 4.4, height: float = 2.9
) -> Markup:
    """A chart as inline SVG. `draw` plots on the axes; sizes are in inches of 72 px."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,
            "font.size": 9,
            "text.color": INK,
            "text.parse_math": False,
            "axes.edgecolor": LINE,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
        }
    ):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=SERIES)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    # Several charts on a page would have the same ids, such as "axes_1"; nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    label = Markup(' role="img" aria-label="{}"').format(title)
    return Markup(svg.replace("<svg", f"<svg{label}", 1))


def _curves(report: Report) -> list[tuple[str, Markup]]:
    """Titles and charts of the losses and the accuracy per epoch."""
    if not report.epochs:
        return []
    epochs = [epoch.epoch for epoch in report.epochs]
    marker = "o" if len(epochs) == 1 else None

    def draw_losses(axes: "Axes") -> None:
        for part in report.epochs[0].losses:
            values = [epoch.losses.get(part, math.nan) for epoch in report.epochs]
            axes.plot(epochs, values, marker=marker, label=f"L_{part.replace('_', '-')}")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right", ncols=2)
        _format_epoch_axis(axes, epochs)

    def draw_accuracy(axes: "Axes") -> None:
        axes.plot(epochs, [epoch.seen_top1 for epoch in report.epochs], marker=marker)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("top-1 %")
        _format_epoch_axis(axes, epochs)

    return [
        ("Unweighted losses, mean over each epoch", _draw(draw_losses, "Losses per epoch")),
        (
            "Accuracy on validation images of seen classes",
            _draw(draw_accuracy, "Seen accuracy per epoch"),
        ),
    ]


def _format_epoch_axis(axes: "Axes", epochs: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) > 1:
        axes.set_xlim(epochs[0], epochs[-1])


def _reliability(report: Report) -> Markup | None:
    """The reliability diagram: one point per bin, sized by its number of images."""
    calibration = report.calibration
    if calibration is None or not calibration.reliability_after:
        return None

    def draw(axes: "Axes") -> None:
        axes.plot([0, 100], [0, 100], color=LINE)
        for colour, label, bins in (
            (SERIES[0], "training temperature", calibration.reliability_before),
            (SERIES[1], "fitted temperature", calibration.reliability_after),
        ):
            images = [point.images for point in bins]
            axes.scatter(
                [100 * point.confidence for point in bins],
                [100 * point.accuracy for point in bins],
                [10 + 300 * count / sum(images) for count in images],
                color=colour,
            )
            axes.scatter([], [], 30, color=colour, label=label)  # of equal size in the legend
        axes.set(xlim=(0, 103), ylim=(0, 103), xlabel="probability %", ylabel="accuracy %")
        axes.legend(loc="lower right")

    return _draw(draw, "Reliability diagram")


def _forecast_chart(report: Report) -> Markup | None:
    """Expected accuracy on new classes against their number, with intervals."""
    if report.forecast is None:
        return None
    from matplotlib.ticker import NullFormatter

    points = report.forecast.points

    def draw(axes: "Axes") -> None:
        numbers = [point.classes for point in points]
        for colour, label, values in (
            (SERIES[0], "among new classes", [point.alone for point in points]),
            (SERIES[1], "among all classes", [point.joint_unseen for point in points]),
        ):
            low, high = [value.low for value in values], [value.high for value in values]
            axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(numbers, [value.value for value in values], color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(ylim=(0, 103), xlabel="new classes", ylabel="top-1 %")
        axes.legend(loc="upper right")

    return _draw(draw, "Forecast for new classes")


def _spectrum(report: Report) -> Markup | None:
    """The singular values of each text bank's mean-centred features, on a log scale."""
    if not any(bank.singular_values for bank in report.diagnostics):
        return None
    from matplotlib.ticker import NullFormatter

    def draw(axes: "Axes") -> None:
        for bank in report.diagnostics:
            values = np.asarray(bank.singular_values)
            # One singular value of mean-centred features is 0 up to rounding.
            values = values[values > values.max(initial=0) * 1e-6]
            axes.plot(
                range(1, len(values) + 1), values, label=TEXT_TITLES.get(bank.text, bank.text)
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # the default is powers of ten in TeX
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("rank")
        axes.set_ylabel("singular value")
        axes.legend(loc="lower left")

    return _draw(draw, "Spectrum of the class texts")


def _heat_maps(
    similarity: Mapping[str, NDArray[np.float32]], order: Sequence[int], names: Sequence[str]
) -> list[tuple[str, Markup]]:
    """Strategy and chart of each matrix, all with the same scale and order of classes."""
    if len(order) < 2:
        return []
    off_diagonal = ~np.eye(len(order), dtype=bool)
    values = np.concatenate([matrix[off_diagonal] for matrix in similarity.values()])
    low, high = float(values.min()), float(values.max())
    maps = []
    for text, matrix in similarity.items():

        def draw(axes: "Axes", matrix: NDArray[np.float32] = matrix) -> None:
            image = axes.imshow(
                matrix[np.ix_(order, order)],
                cmap="viridis",
                vmin=low,
                vmax=high,
                interpolation="none",
            )
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            axes.set_xticks([])
            axes.set_yticks([])
            if len(order) <= NAMED_CLASSES:
                shown = [_shortened(names[row]) for row in order]
                axes.set_yticks(range(len(order)), shown, fontsize=min(8, 230 / len(order)))
                axes.tick_params(length=0)
            bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
            bar.outline.set_visible(False)

        maps.append((text, _draw(draw, f"Similarity of class texts, {text}", width=5, height=4)))
    return maps


def _shortened(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"

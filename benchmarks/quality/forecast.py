"""Forecast accuracies on new classes compared with the measured ones on all unseen classes.

Reads the reports of finished runs that were trained with a forecast and have unseen photos, which
the forecast does not use. For each run, the table has the forecast for as many new classes as there
are unseen ones, and what the student reaches on them: alone, and among all classes with the stored
seen bias. The default runs are those of `benchmarks.quality.exported_student`.

    python -m benchmarks.quality.forecast [RUN …]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._photos import ROOT
from contract import Accuracy, ForecastValue, JointAccuracy, Report
from distill.evaluation.report.training_report import read_report

RUNS = ROOT / "bench-out" / "exported_student"
Compared = tuple[str, ForecastValue, float]  # a name, the forecast, the measured accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="folders of training runs")
    options = parser.parse_args()
    runs = options.runs or sorted(path.parent for path in RUNS.glob("*/report.json"))
    reports = {run: read_report(run) for run in runs}
    table = Table("run", "new classes", "top-1 %", "forecast", "measured", "inside")
    inside: list[bool] = []
    for run, report in reports.items():
        if report.forecast is None:
            print(f"{run}: no forecast, train it with --forecast")
            continue
        unseen = unseen_of(report)
        if unseen is None:
            print(f"{run}: no unseen photos, on which to measure")
            continue
        for name, expected, measured in compared(report, unseen):
            inside.append(expected.low <= measured <= expected.high)
            table.add_row(
                run.name, str(unseen.classes), name,
                f"{expected.value:.1f} ({expected.low:.1f} to {expected.high:.1f})",
                f"{measured:.1f}", "yes" if inside[-1] else "no",
            )  # fmt: skip
        table.add_section()
    if not inside:
        print("forecast: no run with a forecast; python -m benchmarks.quality.exported_student")
        return
    Console().print(table)
    print(f"{sum(inside)} of {len(inside)} measured accuracies are inside their intervals of 95 %")


def compared(report: Report, unseen: Accuracy) -> Iterator[Compared]:
    """Pairs of forecast and measured accuracy of a run's student, in percent."""
    assert report.forecast is not None
    joint = joint_of(report)
    point = next(x for x in report.forecast.points if x.classes == unseen.classes)
    yield "new, alone", point.alone, unseen.top1
    yield "new, among all", point.joint_unseen, joint.unseen
    yield "seen, among all", point.joint_seen, joint.seen
    yield "harmonic mean", point.joint_harmonic_mean, joint.harmonic_mean


def unseen_of(report: Report) -> Accuracy | None:
    """The student's accuracy on unseen classes with the texts of the run, if it has any."""
    wanted = ("student", "unseen", report.config.text_strategy)
    rows = (row for row in report.accuracies if (row.model, row.split, row.text) == wanted)
    return next(rows, None)


def joint_of(report: Report) -> JointAccuracy:
    """The student's accuracies among all classes with the stored seen bias."""
    assert report.calibration is not None
    return next(
        row
        for row in report.joint
        if (row.model, row.text) == ("student", report.config.text_strategy)
        and row.bias == report.calibration.seen_bias
    )


if __name__ == "__main__":
    main()

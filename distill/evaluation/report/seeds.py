"""The report of several runs that differ only in their seed: seeds.json and seeds.html."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from contract import Report, SplitName, TrainConfig
from distill.evaluation.report.training_report import TEXT_TITLES, templates, write_files


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Frozen):
    """A value over several runs. `deviation` is the sample standard deviation."""

    values: Annotated[tuple[float, ...], Field(description="In the order of the seeds")]
    mean: float
    deviation: float


class SeedAccuracy(_Frozen):
    """An `Accuracy` over several seeds, in percent."""

    model: Literal["teacher", "student"]
    text: str
    split: Literal["seen", "unseen"]
    top1: Spread
    mean_per_class: Spread


class SeedImitation(_Frozen):
    """An `Imitation` over several seeds."""

    split: SplitName
    m_rel: Spread
    m_neigh: Spread | None
    m_vlalign: Spread


class SeedsReport(_Frozen):
    """Results over several runs that differ only in their seed."""

    config: Annotated[TrainConfig, Field(description="Configuration of the first seed")]
    release_hash: str
    seeds: tuple[int, ...]
    accuracies: tuple[SeedAccuracy, ...]
    seen_top1_last_epochs: Spread
    imitation: tuple[SeedImitation, ...]


def write_seeds_report(report: SeedsReport, out: Path) -> None:
    """Write seeds.json and seeds.html to the folder `out`, each atomically.

    Raises:
        DataError: `out` cannot be written to.
    """
    page = templates.get_template("seeds.html").render(report=report, text_titles=TEXT_TITLES)
    write_files(out, {"seeds.html": page, "seeds.json": report.model_dump_json(indent=1) + "\n"})


def combine_reports(reports: Sequence[Report]) -> SeedsReport:
    """Mean and deviation over reports that differ only in their seed."""
    rows = zip(*(report.accuracies for report in reports), strict=True)
    imitations = zip(*(report.imitation for report in reports), strict=True)
    last = [r.seen_top1_last_epochs for r in reports if r.seen_top1_last_epochs is not None]
    return SeedsReport(
        config=reports[0].config,
        release_hash=reports[0].release_hash,
        seeds=tuple(report.config.seed for report in reports),
        accuracies=tuple(
            SeedAccuracy(
                model=by_seed[0].model,
                text=by_seed[0].text,
                split=by_seed[0].split,
                top1=spread(row.top1 for row in by_seed),
                mean_per_class=spread(row.mean_per_class for row in by_seed),
            )
            for by_seed in rows
        ),
        seen_top1_last_epochs=spread(last),
        imitation=tuple(
            SeedImitation(
                split=by_seed[0].split,
                m_rel=spread(row.m_rel for row in by_seed),
                m_neigh=None
                if by_seed[0].m_neigh is None
                else spread(row.m_neigh for row in by_seed if row.m_neigh is not None),
                m_vlalign=spread(row.m_vlalign for row in by_seed),
            )
            for by_seed in imitations
        ),
    )


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation; the deviation of a single value is 0."""
    values = tuple(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(values=values, mean=statistics.fmean(values), deviation=deviation)

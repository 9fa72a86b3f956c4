"""Several seeds of one configuration, one after the other, and what they have in common."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from contract import (
    Release,
    Report,
    SeedAccuracy,
    SeedImitation,
    SeedsReport,
    Spread,
    TrainConfig,
)
from distill.evaluation.report import write_seeds_report
from distill.pipeline.job import OnEvent, run_job

FOLDER: Final = "seed-{}"


def run_seeds(
    config: TrainConfig,
    release: Release,
    out: Path,
    seeds: Sequence[int],
    *,
    cache: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> SeedsReport:
    """Run the job of each seed in a folder of its own below `out`; write what they gave together.

    Raises:
        UserError, Interrupted: as `run_job`.
    """
    reports = [
        run_job(
            config.model_copy(update={"seed": seed}),
            release,
            out / FOLDER.format(seed),
            cache=cache,
            on_event=on_event,
            should_stop=should_stop,
            resume=resume,
        )
        for seed in seeds
    ]
    together = gather(reports)
    write_seeds_report(together, out)
    return together


def gather(reports: Sequence[Report]) -> SeedsReport:
    """Mean and deviation over reports that differ in their seed alone."""
    rows = zip(*(report.accuracies for report in reports), strict=True)
    imitations = zip(*(report.imitation for report in reports), strict=True)
    last = [r.seen_top1_last_epochs for r in reports if r.seen_top1_last_epochs is not None]
    return SeedsReport(
        config=reports[0].config,
        release_hash=reports[0].release_hash,
        seeds=tuple(report.config.seed for report in reports),
        accuracies=tuple(
            SeedAccuracy(
                model=same[0].model,
                text=same[0].text,
                split=same[0].split,
                top1=spread(row.top1 for row in same),
                mean_per_class=spread(row.mean_per_class for row in same),
            )
            for same in rows
        ),
        seen_top1_last_epochs=spread(last),
        imitation=tuple(
            SeedImitation(
                split=same[0].split,
                m_rel=spread(row.m_rel for row in same),
                m_neigh=None
                if same[0].m_neigh is None
                else spread(row.m_neigh for row in same if row.m_neigh is not None),
                m_vlalign=spread(row.m_vlalign for row in same),
            )
            for same in imitations
        ),
    )


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation; the deviation of a single value is 0."""
    values = tuple(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(values=values, mean=statistics.fmean(values), deviation=deviation)

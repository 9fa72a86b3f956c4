"""Runs one configuration with several seeds, one at a time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from contract import Release, TrainConfig
from distill.evaluation.report.seeds import SeedsReport, combine_reports, write_seeds_report
from distill.pipeline.job import OnEvent, run_job

FOLDER: Final = "seed-{}"


def run_seeds(  # noqa: PLR0913 - the arguments of run_job, and the seeds
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
    """Run the job with each seed in its own folder below `out`, and write a combined report.

    Raises:
        UserError, Interrupted: as in `run_job`.
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
    combined = combine_reports(reports)
    write_seeds_report(combined, out)
    return combined

"""The training of one job on a Ray cluster; runs there, as a Ray job that `submit` starts.

Ray Train starts the processes, which train together as those of torchrun do. When one dies, or its
node, Ray starts them all again where there is room, and they go on from the checkpoint in the
job's folder. What a user has to mend is no reason to start again: it is written down and told.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from contract import EventKind, Job, Release, TrainConfig
from distill.data.allowed_paths import check_allowed_paths
from distill.errors import Interrupted, UserError
from distill.on_ray.folder import Listener, Outcome, RayFolder
from distill.pipeline.job import run_job
from distill.training.distributed import TIMEOUT, processes
from distill.training.malloc_tuning import is_out_of_memory, out_of_memory
from distill.worker.protocol import INTERRUPTED, OUT_OF_MEMORY, event_line

STARTS_AGAIN: Final = 3  # after a process or a node was lost


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the options say, which are those of `distill train`."""
    parser = argparse.ArgumentParser(prog="distill-on-ray", description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, required=True)
    for name in ("config", "release", "out", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, action="append", default=[])
    # A worker says these to `distill train`; here they go without saying.
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--events", action="store_true")
    options = parser.parse_args(arguments)
    folder = RayFolder(options.out)
    try:
        config = TrainConfig.model_validate_json(options.config.read_bytes())
        if options.data_root:
            check_allowed_paths(config, options.data_root)
        ray.init(address="auto", log_to_driver=True)
        fit(options, folder)
    except UserError as error:
        folder.end(Outcome(1, f"distill: {error}"))


def fit(options: argparse.Namespace, folder: RayFolder) -> None:
    """Train with so many processes, each with what the job needs, and a GPU where there are."""
    needs = Job.model_validate_json((options.out / "job.json").read_bytes()).needs
    gpus = ray.cluster_resources().get("GPU", 0)
    trainer = TorchTrainer(
        train_together,
        train_loop_config={
            name: str(getattr(options, name)) for name in ("config", "release", "out", "cache")
        },
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=options.processes,
            use_gpu=needs.gpu or gpus >= options.processes,
            resources_per_worker={"CPU": 1, "memory": int(needs.memory_gb * 2**30)},
        ),
        run_config=RunConfig(
            name=folder.submission(),  # of an earlier one Ray would restore its state
            storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=STARTS_AGAIN),
        ),
    )
    trainer.fit()


def train_together(options: dict[str, str]) -> None:
    """What each process does."""
    out = Path(options["out"])
    folder = RayFolder(out)
    if folder.outcome() is not None:  # Ray starts again what a user has to mend first
        return
    config = TrainConfig.model_validate_json(Path(options["config"]).read_bytes())
    release = Release.model_validate_json(Path(options["release"]).read_bytes())

    def tell(kind: EventKind, data: Mapping[str, Any]) -> None:
        with folder.events.open("a") as events:
            print(event_line(kind, data), file=events)

    outcome = Outcome(0)
    if processes().is_main_process:
        count = processes().num_processes
        tell(EventKind.LOG, {"message": f"training in {count} processes on Ray"})
    try:
        run_job(
            config,
            release,
            out,
            cache=Path(options["cache"]),
            on_event=tell,
            should_stop=Listener(folder),
            resume=True,
        )
    except Interrupted:
        outcome = Outcome(INTERRUPTED, "stopped; the checkpoint is there")
    except UserError as error:
        folder.end(Outcome(1, f"distill: {error}"))
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        folder.end(Outcome(OUT_OF_MEMORY, f"distill: {out_of_memory(config.batch_size)}"))
        raise
    if processes().is_main_process:
        folder.end(outcome)


if __name__ == "__main__":
    main()

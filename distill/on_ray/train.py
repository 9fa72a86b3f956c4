"""The training of one job on a Ray cluster; runs there, as a Ray job that `submit` starts.

First the teacher's features are computed on all nodes (see `features`). Then Ray Train starts the
processes, which train together like those of torchrun. When a process or its node dies, Ray
restarts all of them where there are resources, and they resume from the checkpoint in the job's
folder. An error that the user has to fix is recorded instead, without a restart.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from contract import EventKind, Job, TrainConfig
from distill.data.files.allowed_paths import check_allowed_paths
from distill.data.releases import read_release
from distill.errors import Interrupted, UserError
from distill.on_ray.features import compute_features
from distill.on_ray.messages import RayFolder, StopRequest
from distill.pipeline.job import run_job
from distill.training.distributed import TIMEOUT, connect, processes
from distill.training.outcome import FAILED, INTERRUPTED, SUCCEEDED, Outcome, outcome_of

MAX_RESTARTS: Final = 3  # after a process or a node was lost


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with the options of `distill train`."""
    parser = argparse.ArgumentParser(prog="distill-on-ray", description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, required=True)
    for name in ("config", "release", "out", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, action="append", default=[])
    # A worker passes these to `distill train`; here they are always on.
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
    except Interrupted:
        folder.end(Outcome(INTERRUPTED, "distill: stopped before the first step"))
    except UserError as error:
        folder.end(Outcome(FAILED, f"distill: {error}"))


def fit(options: argparse.Namespace, folder: RayFolder) -> None:
    """Compute the teacher's features, then train in `options.processes` processes.

    Each process has the job's needs, and a GPU if the cluster has one for each of the training.
    """
    needs = Job.model_validate_json((options.out / "job.json").read_bytes()).needs
    use_gpu = needs.gpu or ray.cluster_resources().get("GPU", 0) >= options.processes
    memory = int(needs.memory_gb * 2**30)
    paths = {name: str(getattr(options, name)) for name in ("config", "release", "out", "cache")}
    resources = {"num_cpus": 1, "num_gpus": int(use_gpu), "memory": memory}
    compute_features(paths, resources, options.processes)
    trainer = TorchTrainer(
        train_in_process,
        train_loop_config=paths,
        torch_config=TorchConfig(timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=options.processes,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1, "memory": memory},
        ),
        run_config=RunConfig(
            name=folder.submission(),  # an equal name would restore the earlier run
            storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
        ),
    )
    trainer.fit()


def train_in_process(options: dict[str, str]) -> None:
    """Train in each process that Ray Train starts."""
    out = Path(options["out"])
    folder = RayFolder(out)
    if folder.outcome() is not None:  # Ray also restarts after an error that the user has to fix
        return
    config = TrainConfig.model_validate_json(Path(options["config"]).read_bytes())
    release = read_release(Path(options["release"]))

    if connect(config.device).is_main_process:
        count = processes().num_processes
        folder.write_event(EventKind.LOG, {"message": f"training in {count} processes on Ray"})
    outcome = Outcome(SUCCEEDED)
    try:
        run_job(
            config,
            release,
            out,
            cache=Path(options["cache"]),
            on_event=folder.write_event,
            should_stop=StopRequest(folder),
            resume=True,
        )
    except Exception as error:
        failure = outcome_of(error, config.batch_size)
        if failure is None:
            raise
        outcome = failure
        if not isinstance(error, Interrupted):
            folder.end(outcome)  # by whichever process failed; the others wait for it
            raise
    if processes().is_main_process:
        folder.end(outcome)


if __name__ == "__main__":
    main()
